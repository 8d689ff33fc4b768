"""The solvers integrate the flow: exact where the flow is straight, convergent where it bends, guided as stated."""

import math

import pytest
import torch

from model.network import NetworkConfig, Sana
from model.sampler import _dpm_solver_2m, _euler, sample, sigmas


def test_grid_is_the_published_one() -> None:
    published = [0.9997, 0.9824, 0.9639, 0.9441, 0.9227, 0.8996, 0.8746, 0.8475, 0.8178, 0.7853, 0.7496]
    published += [0.7102, 0.6663, 0.6173, 0.5621, 0.4997, 0.4283, 0.3459, 0.2498, 0.1362, 0.0]
    assert [round(sigma, 4) for sigma in sigmas("flow_dpm-solver", 20, 3.0).tolist()] == published


@pytest.mark.parametrize("solve", [_euler, _dpm_solver_2m])
def test_one_latent_is_reached_exactly(solve) -> None:
    latent, grid = torch.tensor([0.3, -2.0]), sigmas("flow_dpm-solver", 5, 3.0).tolist()
    start = (1 - grid[0]) * latent + grid[0] * torch.tensor([1.0, 0.5])
    found = solve(lambda x, sigma: (x - latent) / sigma, start, grid)
    torch.testing.assert_close(found, latent, rtol=1e-5, atol=1e-5)


def gaussian_velocity(scale: float):
    """Exact velocity where latents are N(0, scale^2): the flow maps noise z to scale*z."""

    def predict(x: torch.Tensor, sigma: float) -> torch.Tensor:
        variance = (1 - sigma) ** 2 * scale**2 + sigma**2
        return x * (sigma - (1 - sigma) * scale**2) / variance

    return predict


def error(solve, name: str, steps: int) -> float:
    scale, grid = 0.5, sigmas(name, steps, 3.0).tolist()
    x = torch.tensor([1.0], dtype=torch.float64)
    start = x * math.sqrt((1 - grid[0]) ** 2 * scale**2 + grid[0] ** 2)
    return abs(solve(gaussian_velocity(scale), start, grid).item() - scale)


def test_solvers_converge_and_the_second_order_one_faster() -> None:
    euler = [error(_euler, "flow_euler", steps) for steps in (20, 40)]
    dpm = [error(_dpm_solver_2m, "flow_dpm-solver", steps) for steps in (20, 40)]
    assert 1.6 < euler[0] / euler[1] < 2.6
    assert dpm[1] < dpm[0] / 2.5
    assert dpm[0] < euler[0] / 2


def test_guidance_extrapolates_from_the_empty_prompt() -> None:
    torch.manual_seed(0)
    network = Sana(NetworkConfig(4, 32, 2, 16, 2, 2.0, 1, 16, True))
    text = network.encode_text(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
    null = network.encode_text(torch.randn(1, 1, 16).expand(2, 1, 16), torch.ones(2, 1, dtype=torch.bool))
    noise = torch.randn(2, 4, 4, 4)
    drawn = sample(network, noise, text, null, sampler="flow_euler", steps=1, guidance=3.0, flow_shift=3.0)
    with torch.no_grad():
        one = torch.full((2,), 1000.0)
        v_text, v_null = network(noise, one, text), network(noise, one, null)
    torch.testing.assert_close(drawn, noise - (v_null + 3.0 * (v_text - v_null)), rtol=1e-4, atol=1e-5)

"""The solvers integrate the flow: exact where the flow is straight, convergent where it bends, guided as stated."""

import math
import secrets

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from model.network import NetworkConfig, Sana
from model.sampler import SamplerName, _dpm_solver_2m, _euler, sample, solver_grid


def test_grid_is_the_published_one() -> None:
    published = [0.9997, 0.9824, 0.9639, 0.9441, 0.9227, 0.8996, 0.8746, 0.8475, 0.8178, 0.7853, 0.7496]
    published += [0.7102, 0.6663, 0.6173, 0.5621, 0.4997, 0.4283, 0.3459, 0.2498, 0.1362, 0.0]
    assert [round(sigma, 4) for sigma in solver_grid("flow_dpm-solver", 20, 3.0, "nvlabs").sigmas] == published


@pytest.mark.parametrize("solve", [_euler, _dpm_solver_2m])
def test_one_latent_is_reached_exactly(solve) -> None:
    latent, grid = torch.tensor([0.3, -2.0]), solver_grid("flow_dpm-solver", 5, 3.0, "nvlabs")
    start = (1 - grid.sigmas[0]) * latent + grid.sigmas[0] * torch.tensor([1.0, 0.5])
    found = solve(lambda x, time: (x - latent) * 1000 / time, start, grid)
    torch.testing.assert_close(found, latent, rtol=1e-5, atol=1e-5)


def gaussian_velocity(scale: float):
    """Exact velocity where latents are N(0, scale^2): the flow maps noise z to scale*z."""

    def predict(x: torch.Tensor, time: float) -> torch.Tensor:
        sigma = time / 1000
        variance = (1 - sigma) ** 2 * scale**2 + sigma**2
        return x * (sigma - (1 - sigma) * scale**2) / variance

    return predict


def error(solve, name: str, steps: int) -> float:
    scale, grid = 0.5, solver_grid(name, steps, 3.0, "nvlabs")
    x = torch.tensor([1.0], dtype=torch.float64)
    start = x * math.sqrt((1 - grid.sigmas[0]) ** 2 * scale**2 + grid.sigmas[0] ** 2)
    return abs(solve(gaussian_velocity(scale), start, grid).item() - scale)


def test_solvers_converge_and_the_second_order_one_faster() -> None:
    euler = [error(_euler, "flow_euler", steps) for steps in (20, 40)]
    dpm = [error(_dpm_solver_2m, "flow_dpm-solver", steps) for steps in (20, 40)]
    assert 1.6 < euler[0] / euler[1] < 2.6
    assert dpm[1] < dpm[0] / 2.5
    assert dpm[0] < euler[0] / 2


def test_guidance_extrapolates_from_the_empty_prompt() -> None:
    torch.manual_seed(0)
    network = Sana(NetworkConfig(4, 32, 2, 16, 2, 2.0, 1, 16, True, "diffusers"))
    text = network.encode_text(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
    null = network.encode_text(torch.randn(1, 1, 16).expand(2, 1, 16), torch.ones(2, 1, dtype=torch.bool))
    noise = torch.randn(2, 4, 4, 4)
    drawn = sample(network, noise, text, null, sampler="flow_euler", steps=1, guidance=3.0, flow_shift=3.0)
    with torch.no_grad():
        one = torch.full((2,), 1000.0)
        v_text, v_null = network(noise, one, text), network(noise, one, null)
    torch.testing.assert_close(drawn, noise - (v_null + 3.0 * (v_text - v_null)), rtol=1e-4, atol=1e-5)


def diffusers_solver(
    sampler: SamplerName, flow_shift: float
) -> DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler:
    """The scheduler that diffusers' SANA pipelines come with."""
    if sampler == "flow_euler":
        return FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, final_sigmas_type="zero"
    )


@pytest.mark.parametrize("sampler", ["flow_dpm-solver", "flow_euler"])
def test_every_step_is_the_one_that_diffusers_scheduler_makes(sampler: SamplerName) -> None:
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    for steps in range(1, 51):
        flow_shift = random.choice([1.0, 3.0, 6.0, random.uniform(1, 6)])
        theirs = diffusers_solver(sampler, flow_shift)
        theirs.set_timesteps(steps)
        grid = solver_grid(sampler, steps, flow_shift, "diffusers")
        assert grid.timesteps == pytest.approx(theirs.timesteps.tolist(), rel=1e-5)
        if sampler == "flow_dpm-solver":
            assert list(grid.timesteps) == theirs.timesteps.tolist()
        states: list[torch.Tensor] = []
        slope = torch.from_numpy(random.normal(size=(2, 6, 5))).float()

        def predict(x: torch.Tensor, time: float, slope=slope, states=states) -> torch.Tensor:
            states.append(x)
            return slope[0] + slope[1] * x * (0.5 + time / 1000)

        x = start = torch.from_numpy(random.normal(size=(6, 5))).float()
        end = (_euler if sampler == "flow_euler" else _dpm_solver_2m)(predict, start, grid)
        ours = [*states, end]
        for number, time in enumerate(theirs.timesteps):
            assert (ours[number] - x).norm() <= 1e-5 * x.norm(), (steps, flow_shift, number)
            x = theirs.step(predict(x, float(time), states=[]), time, x).prev_sample
        assert (end - x).norm() <= 1e-5 * x.norm(), (steps, flow_shift)


def test_dpm_solver_follows_the_papers_algorithm_in_double_precision() -> None:
    for steps, flow_shift in ((1, 3.0), (2, 3.0), (7, 1.0), (20, 3.0), (50, 6.0)):
        sigma = [
            flow_shift * s / (1 + (flow_shift - 1) * s) for s in ((1 - i / steps) * 0.999 for i in range(steps + 1))
        ]
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)

        def predict(x: torch.Tensor, time: float) -> torch.Tensor:
            return torch.sin(3 * x) * (1 + time / 500)

        ours = _dpm_solver_2m(predict, x, solver_grid("flow_dpm-solver", steps, flow_shift, "nvlabs"))
        latents: list[torch.Tensor] = []
        for i in range(steps):
            latents.append(x - sigma[i] * predict(x, 1000 * sigma[i]))
            if i == steps - 1:
                x = latents[-1]
                break
            half = [0.5 * math.log(((1 - s) / s) ** 2) for s in sigma[max(i - 1, 0) : i + 2]]
            h = half[-1] - half[-2]
            estimate = latents[-1]
            if i:
                r = (half[1] - half[0]) / h
                estimate = (1 + 1 / (2 * r)) * latents[-1] - 1 / (2 * r) * latents[-2]
            x = sigma[i + 1] / sigma[i] * x - (1 - sigma[i + 1]) * (math.exp(-h) - 1) * estimate
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_under_nvlabs_the_empty_prompt_is_read_at_the_captions_tokens() -> None:
    torch.manual_seed(0)
    network = Sana(NetworkConfig(4, 32, 2, 16, 2, 2.0, 1, 16, True, "nvlabs"))
    with torch.no_grad():
        for block in network.blocks:
            block.cross_attn.proj.weight.normal_(std=0.3)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    text, padded_null = torch.randn(2, 5, 16), torch.randn(1, 8, 16).expand(2, 8, 16)
    noise = torch.randn(2, 4, 4, 4)
    context = network.encode_text(text, mask)
    alone = network.encode_text(padded_null, torch.arange(8).expand(2, 8) < 1)
    settings = {"sampler": "flow_euler", "steps": 1, "flow_shift": 3.0}
    drawn = sample(network, noise, context, alone, guidance=3.0, **settings)
    with torch.no_grad():
        v_text = network(noise, torch.full((2,), 1000.0), context)
        v_null = network(noise, torch.full((2,), 1000.0), network.encode_text(padded_null[:, :5], mask))
    torch.testing.assert_close(drawn, noise - (v_null + 3.0 * (v_text - v_null)), rtol=1e-4, atol=1e-5)
    short = network.encode_text(padded_null[:, :1], torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="a text of 1 tokens cannot be read at 5"):
        sample(network, noise, context, short, guidance=3.0, **settings)

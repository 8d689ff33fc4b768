"""Claims about the network on Triton's kernels: it is the function that it is in plain PyTorch."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels.kernel_choice import Choice, choose_kernels, chosen_kernels
from kernels.linear_attention import triton_kernel as attention
from kernels.mix_feed_forward import triton_kernel as feed_forward
from kernels.modulation import triton_kernel as modulation
from model.network import NetworkConfig, Sana
from model.sampler import sample

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def kernels_of_its_own() -> Iterator[None]:
    """The choice holds for the process: it goes back to what it was."""
    before = chosen_kernels()
    yield
    choose_kernels(before)


def small_network(qk_norm: bool) -> Sana:
    """One block in which every parameter is random: Triton's interpreter takes seconds for each."""
    torch.manual_seed(0)
    network = Sana(NetworkConfig(3, 32, 1, 16, 2, 1.5, 1, 6, qk_norm, "diffusers")).to(DEVICE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network


def value_and_gradients(network: Sana, choice: Choice, autocast: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The output for a fixed batch of a grid that is not square, and the gradient of every parameter.

    Latents and text have the dtype of the network's weights.
    """
    choose_kernels(choice)
    dtype = next(network.parameters()).dtype
    random = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 3, 2, 3, generator=random).to(DEVICE, dtype)
    text = torch.randn(2, 4, 6, generator=random).to(DEVICE, dtype)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool, device=DEVICE)
    network.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        out = network(latents, torch.tensor([20.0, 900.0], device=DEVICE), network.encode_text(text, mask))
    out.float().square().sum().backward()
    return out.detach(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("qk_norm", [True, False])
def test_kernels_give_the_network_s_output_and_gradients(qk_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network(qk_norm)
    used = []
    for module, name in ((attention, "linear_attention"), (feed_forward, "mix_feed_forward"), (modulation, "modulate")):
        kernel = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, _run=kernel, _name=name: used.append(_name) or _run(*given))
    plain, plain_gradients = value_and_gradients(network, "reference")
    assert not used
    fused, fused_gradients = value_and_gradients(network, "triton")
    assert sorted(used) == ["linear_attention", "mix_feed_forward", *["modulate"] * 3]
    assert (fused - plain).norm() <= 1e-5 * plain.norm()
    for ours, expected in zip(fused_gradients, plain_gradients, strict=True):
        assert (ours - expected).norm() <= 1e-4 * expected.norm() + 1e-6


def test_bfloat16_weights_sample_without_autocast_what_float32_weights_do() -> None:
    network, random = small_network(qk_norm=True).to(torch.bfloat16), torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 3, 5, generator=random).to(DEVICE)
    text, mask = torch.randn(2, 4, 6, generator=random).to(DEVICE), torch.ones(2, 4, dtype=torch.bool, device=DEVICE)

    def latents() -> Tensor:
        context = network.encode_text(text.to(next(network.parameters()).dtype), mask)
        options = {"sampler": "flow_dpm-solver", "steps": 3, "guidance": 2.0, "flow_shift": 3.0}
        return sample(network, noise, context, context, **options)

    with torch.no_grad():
        found = latents()
        network.float()
        exact = latents()
    assert (found - exact).norm() <= 3e-2 * exact.norm()


@pytest.mark.parametrize("choice", ["reference", "triton"])
@pytest.mark.parametrize(
    ("weights", "autocast"),
    [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)],
    ids=["bfloat16", "bfloat16-autocast", "float32-autocast"],
)
def test_products_in_bfloat16_compute_what_float32_does(
    weights: torch.dtype, autocast: bool, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    for name in ("modulate", "gated_residual"):
        kernel = getattr(modulation, name)
        monkeypatch.setattr(
            modulation, name, lambda *given, _run=kernel, _name=name: used.append(_name) or _run(*given)
        )
    network = small_network(qk_norm=True).to(torch.bfloat16).to(weights)
    found, gradients = value_and_gradients(network, choice, autocast)
    assert used.count("modulate") == (3 if choice == "triton" else 0) and used.count("gated_residual") == (
        2 if choice == "triton" else 0
    )
    exact, exact_gradients = value_and_gradients(network.float(), "reference")
    assert found.dtype == torch.bfloat16 and all(gradient.dtype == weights for gradient in gradients)
    assert (found.float() - exact).norm() <= 3e-2 * exact.norm()
    error, norm = (
        torch.stack([one.norm() for one in each]).norm()
        for each in (
            [ours.float() - right for ours, right in zip(gradients, exact_gradients, strict=True)],
            exact_gradients,
        )
    )
    assert error <= 6e-2 * norm

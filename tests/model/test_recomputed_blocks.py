"""Activation checkpointing, and keys and values of text made in each block: the same bits, and less in memory."""

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from kernels.kernel_choice import Choice, choose_kernels, chosen_kernels
from model.network import EmbeddedText, NetworkConfig, Sana
from tasks.planning.count_without_data import count_peak_bytes

DEPTH = 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_INTERPRETER = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def kernels_of_its_own() -> Iterator[None]:
    """The choice holds for the process: it goes back to what it was."""
    before = chosen_kernels()
    yield
    choose_kernels(before)


def network_of(depth: int = DEPTH, hidden: int = 64, weights: torch.dtype = torch.float32) -> Sana:
    """A network in which every parameter is random."""
    torch.manual_seed(0)
    network = Sana(NetworkConfig(4, hidden, depth, 16, 2, 2.5, 1, 24, True, "diffusers")).to(DEVICE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network.to(weights)


def inputs_of(network: Sana, side: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, times, and texts with masks of unequal lengths."""
    random, dtype = torch.Generator().manual_seed(1), next(network.parameters()).dtype
    latents = torch.randn(3, 4, side, side, generator=random).to(DEVICE, dtype)
    text = torch.randn(3, 6, 24, generator=random).to(DEVICE, dtype)
    mask = torch.arange(6) < torch.tensor([[2], [6], [3]])
    return latents, torch.tensor([50.0, 500.0, 950.0], device=DEVICE), text, mask.to(DEVICE)


def output_and_gradients(network: Sana, autocast: bool, before_the_blocks: bool = False) -> list[Tensor]:
    """The velocity, and the gradient of every parameter. Keys and values may be made before the first block."""
    latents, times, text, mask = inputs_of(network)
    network.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        read = (network.encode_text if before_the_blocks else network.embed_text)(text, mask)
        out = network(latents, times, read)
    out.float().square().mean().backward()
    return [out.detach(), *(parameter.grad for parameter in network.parameters())]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("weights", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)],
    ids=["float32", "autocast", "bfloat16-weights"],
)
def test_recomputing_none_some_or_all_blocks_gives_the_same_bits(weights: torch.dtype, autocast: bool) -> None:
    expected = output_and_gradients(network_of(weights=weights), autocast)
    assert all(gradient.any() for gradient in expected)
    for count in (1, DEPTH, DEPTH + 3):
        network = network_of(weights=weights)
        network.recompute_blocks(count)
        assert same(output_and_gradients(network, autocast), expected)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_keys_and_values_made_in_each_block_or_before_all_give_the_same_bits(autocast: bool) -> None:
    before, within = (output_and_gradients(network_of(), autocast, first) for first in (True, False))
    assert same(before, within)


@pytest.mark.skipif(not ON_INTERPRETER, reason="Triton's kernels need a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("choice", ["triton"])
def test_recomputing_blocks_that_run_on_kernels_gives_the_same_bits(choice: Choice) -> None:
    choose_kernels(choice)
    network = network_of(depth=2, hidden=32)
    expected = [tensor.clone() for tensor in output_and_gradients(network, autocast=True)]
    network.recompute_blocks(2)
    assert same(output_and_gradients(network, autocast=True), expected)


def test_without_gradients_nothing_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of()
    network.recompute_blocks(DEPTH)
    monkeypatch.setattr("model.network.checkpoint", lambda *_given, **_options: pytest.fail("checkpointed"))
    latents, times, text, mask = inputs_of(network)
    with torch.no_grad():
        network(latents, times, network.embed_text(text, mask))


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("count", [2, DEPTH])
def test_of_recomputed_blocks_the_inputs_alone_are_saved(count: int, autocast: bool) -> None:
    network = network_of()
    network.recompute_blocks(count)
    inputs: dict[int, Tensor] = {}  # by storage
    saved: dict[int, Tensor] = {}  # while one of these blocks runs
    running: list[nn.Module] = []

    def enter(block: nn.Module, given: tuple[object, ...]) -> None:
        running.append(block)
        inputs.update({one.untyped_storage()._cdata: one for one in given if isinstance(one, Tensor)})

    def leave(_block: nn.Module, _given: object, _out: Tensor) -> None:
        running.pop()

    def keep(tensor: Tensor) -> Tensor:
        if running and tensor.numel():
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    for block in network.blocks[:count]:
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    latents, times, text, mask = inputs_of(network)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            network(latents, times, network.embed_text(text, mask))
    assert saved.keys() == inputs.keys()
    assert len(saved) == count + 3  # tokens of each block, and the modulation, the text and its mask, which all share


@pytest.mark.skipif(DEVICE == "cuda", reason="the counter follows operations of the CPU")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_a_further_recomputed_block_adds_its_tokens_to_the_peak_and_nothing_else(autocast: bool) -> None:
    peaks = []
    for depth in (3, 4, 5):
        network = network_of(depth, hidden=32)
        network.recompute_blocks(depth)
        latents, times, text, mask = inputs_of(network, side=24)  # large beside the gradients of the weights

        def step(network: Sana = network, given: tuple[Tensor, ...] = (latents, times, text, mask)) -> None:
            latents, times, text, mask = given
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = network(latents, times, network.embed_text(text, mask)).float().square().mean()
            loss.backward()

        peaks.append(count_peak_bytes(step))
    tokens = 3 * 24 * 24 * 32 * 4  # samples, tokens, channels, bytes
    assert peaks[1] - peaks[0] == peaks[2] - peaks[1] == tokens


def test_keys_and_values_of_two_blocks_are_never_alive_together() -> None:
    def passing(depth: int, before_the_blocks: bool) -> int:
        network = network_of(depth).to("cpu")
        latents, times, text, mask = (tensor.cpu() for tensor in inputs_of(network, side=1))
        text, mask = text.repeat(1, 50, 1), mask.repeat(1, 50)

        def run() -> None:
            with torch.no_grad():
                made = (network.encode_text if before_the_blocks else network.embed_text)(text, mask)
                assert before_the_blocks or isinstance(made, EmbeddedText)
                network(latents, times, made)

        return count_peak_bytes(run)

    keys_values = 2 * 3 * 300 * 64 * 4
    assert passing(6, before_the_blocks=True) - passing(3, before_the_blocks=True) >= 3 * keys_values
    assert passing(6, before_the_blocks=False) == passing(3, before_the_blocks=False)

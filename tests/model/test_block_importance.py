"""Claims about block importance."""

import numpy as np
import pytest
import torch

from model.block_importance import block_importance
from model.growth import grow
from model.network import Sana, TextContext
from tests.helpers.small_networks import small_batch, small_network

TIMES = (0.1, 0.45, 0.9)


def stated_importance(network: Sana, latents: torch.Tensor, noise: torch.Tensor, text: TextContext) -> np.ndarray:
    """The definition, token by token in float64, on states that are stepped through the blocks by hand."""
    scores = np.zeros((len(TIMES), len(network.blocks)))
    for row, time in enumerate(TIMES):
        noised = (1 - time) * latents + time * noise
        x, _, modulation, size = network.embed(noised, torch.full((len(latents),), 1000 * time))
        for i, block in enumerate(network.blocks):
            y = block(x, modulation, text.keys_values[i], text.mask_BT, size)
            before, after = (state.double().flatten(0, 1).numpy() for state in (x, y))
            cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(before, after, strict=True)]
            scores[row, i] = 1 - np.mean(cosines)
            x = y
    return scores


@torch.no_grad()
def test_importance_equals_its_definition_in_float64() -> None:
    network = small_network(4)
    latents, noise, text, mask = small_batch()
    context = network.encode_text(text, mask)
    measured = block_importance(network, latents, noise, context, TIMES)
    assert measured.dtype == torch.float64
    np.testing.assert_allclose(measured.numpy(), stated_importance(network, latents, noise, context), rtol=1e-5)


@torch.no_grad()
def test_a_block_that_changes_nothing_has_importance_zero() -> None:
    network = grow(small_network(2), 4, "partial_preservation", 0, 0.02, torch.Generator().manual_seed(0))
    latents, noise, text, mask = small_batch()
    scores = block_importance(network, latents, noise, network.encode_text(text, mask), TIMES)
    assert scores[:, 2:].abs().max() < 1e-12
    assert scores[:, :2].min() > 1e-3


@torch.no_grad()
def test_a_block_that_turns_every_token_around_has_importance_two() -> None:
    network = grow(small_network(1), 2, "partial_preservation", 0, 0.02, torch.Generator().manual_seed(0))
    network.blocks[1].register_forward_hook(lambda block, inputs, output: -output)
    latents, noise, text, mask = small_batch()
    scores = block_importance(network, latents, noise, network.encode_text(text, mask), TIMES)
    torch.testing.assert_close(scores[:, 1], torch.full((len(TIMES),), 2.0, dtype=torch.float64))


@torch.no_grad()
def test_importance_of_a_batch_is_the_mean_over_its_samples() -> None:
    network = small_network(3)
    latents, noise, text, mask = small_batch(batch=4)
    whole = block_importance(network, latents, noise, network.encode_text(text, mask), TIMES)
    each = [
        block_importance(
            network, latents[i : i + 1], noise[i : i + 1], network.encode_text(text[i : i + 1], mask[i : i + 1]), TIMES
        )
        for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-7)


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = small_network(2)
    latents, noise, text, mask = small_batch()
    context = network.encode_text(text, mask)
    block_importance(network, latents, noise, context, TIMES)
    assert not any(block._forward_hooks for block in network.blocks)
    with pytest.raises(RuntimeError):
        block_importance(network, latents[:2], noise[:2], context, TIMES)
    assert not any(block._forward_hooks for block in network.blocks)

"""Claims about depth pruning."""

from itertools import pairwise

import pytest
import torch

from model.pruning import blocks_to_keep, prune_network, removal_order
from tests.helpers.small_networks import small_batch, small_network, velocity

SCORES = [0.9, 0.1, 0.3, 0.1, 0.05, 0.8]


def test_the_least_important_blocks_are_cut_first() -> None:
    assert removal_order(SCORES) == [4, 1, 3, 2, 5, 0]
    assert [blocks_to_keep(SCORES, depth) for depth in (6, 5, 3, 1)] == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 5],
        [0, 2, 5],
        [0],
    ]


def test_of_equally_important_blocks_the_earlier_is_cut_first() -> None:
    assert blocks_to_keep(SCORES, 4) == [0, 2, 3, 5]
    assert blocks_to_keep([0.5] * 4, 2) == [2, 3]


def test_smaller_cuts_are_nested_in_larger_ones() -> None:
    kept = [set(blocks_to_keep(SCORES, depth)) for depth in range(1, 7)]
    assert all(small < large for small, large in pairwise(kept))


@torch.no_grad()
def test_a_pruned_network_computes_the_kept_blocks_in_order() -> None:
    network, keep = small_network(5), [0, 3, 4]
    latents, _, text, mask = small_batch()
    pruned = prune_network(network, keep)
    times = torch.linspace(50, 950, len(latents))
    x, time, modulation, size = network.embed(latents, times)
    context = network.encode_text(text, mask)
    for i in keep:
        x = network.blocks[i](x, modulation, context.keys_values[i], mask, size)
    expected = network.final_layer(x, time, size)
    assert torch.equal(velocity(pruned, latents, pruned.encode_text(text, mask)), expected)
    assert pruned.config.depth == len(pruned.blocks) == 3


def test_pruning_leaves_the_network_untouched_and_shares_no_memory_with_it() -> None:
    network = small_network(4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pruned = prune_network(network, [1, 2])
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert network.config.depth == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("keep", [[], [1, 0], [1, 1], [0, 4], [-1, 0]])
def test_a_choice_that_is_not_ascending_block_numbers_is_refused_in_one_line(keep: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+: [^\n]+$"):
        prune_network(small_network(4), keep)


@pytest.mark.parametrize(("scores", "depth"), [(SCORES, 0), (SCORES, 7), ([0.1, float("nan")], 1)])
def test_impossible_cuts_are_refused_in_one_line(scores: list[float], depth: int) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+: [^\n]+$"):
        blocks_to_keep(scores, depth)

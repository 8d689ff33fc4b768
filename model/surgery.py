"""Changes of a trained network: to other blocks, which growth and pruning need, and to a norm of queries and keys."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from model.network import Sana, SanaBlock


def with_blocks(network: Sana, blocks: Sequence[SanaBlock]) -> Sana:
    """A copy of `network` whose blocks are copies of `blocks`. A block named twice gives two independent copies.

    Raises ValueError if `blocks` is empty.
    """
    if not blocks:
        raise ValueError("a network needs at least one block: keep one")
    copies = nn.ModuleList(copy.deepcopy(block) for block in blocks)
    # The memo makes `deepcopy` take the new blocks, instead of copying the old ones at full size for nothing.
    changed = copy.deepcopy(network, memo={id(network.blocks): copies})
    changed.config = replace(network.config, depth=len(blocks))
    return changed


def first_blocks(network: Sana, depth: int) -> Sana:
    """`network` cut to its first `depth` blocks. All weights are shared with `network`, not copied."""
    weights = network.state_dict()
    with torch.device("meta"):  # no memory for weights that are replaced at once
        cut = Sana(replace(network.config, depth=depth))
    cut.load_state_dict({name: weights[name] for name in cut.state_dict()}, assign=True)
    return cut.train(network.training)


def with_qk_norm(network: Sana) -> Sana:
    """`network` with a norm of queries and keys in both attentions of every block (SANA-1.5, appendix C).

    The weights of the norm are 1. All other weights are shared with `network`, not copied. The result is another
    function: SANA-1.5 adds the norm to a network that was trained without it, trains on, and finds the network adapted
    within a thousand steps.
    """
    config = replace(network.config, qk_norm=True)
    weights = network.state_dict()
    with torch.device("meta"):  # no memory for weights that are replaced at once
        normed = Sana(config)
    added = {name: torch.ones(tensor.shape) for name, tensor in normed.state_dict().items() if name not in weights}
    normed.load_state_dict(weights | added, assign=True)
    return normed.requires_grad_(True).train(network.training)

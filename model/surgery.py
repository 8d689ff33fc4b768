"""A network with other blocks, which is what growth and pruning have in common, or with QK norm."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from model.network import Sana, SanaBlock


def with_blocks(network: Sana, blocks: Sequence[SanaBlock]) -> Sana:
    """A copy of `network` whose blocks are copies of `blocks`; a block named twice gives two independent copies.

    Raises ValueError if `blocks` is empty.
    """
    if not blocks:
        raise ValueError("a network needs at least one block: keep one")
    copies = nn.ModuleList(copy.deepcopy(block) for block in blocks)
    # the memo makes the copy take the new blocks instead of copying, at full size, those that it would drop
    changed = copy.deepcopy(network, memo={id(network.blocks): copies})
    changed.config = replace(network.config, depth=len(blocks))
    return changed


def with_qk_norm(network: Sana) -> Sana:
    """`network` with a norm of queries and keys, its weights 1, in both attentions of every block (SANA-1.5, app. C).

    Its other weights are shared, not copied. It is another function: SANA-1.5 trains a network without the norm on with
    it, and finds it adapted within a thousand steps.
    """
    config = replace(network.config, qk_norm=True)
    weights = network.state_dict()
    with torch.device("meta"):
        normed = Sana(config)
    added = {name: torch.ones(tensor.shape) for name, tensor in normed.state_dict().items() if name not in weights}
    normed.load_state_dict(weights | added, assign=True)
    return normed.requires_grad_(True).train(network.training)

"""A network with other blocks: what growth and pruning have in common."""

import copy
from collections.abc import Sequence
from dataclasses import replace

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

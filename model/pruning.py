"""Depth pruning: the least important blocks are cut, all at once (SANA-1.5 section 2.4)."""

import math
from collections.abc import Sequence

from model.network import Sana
from model.surgery import with_blocks


def removal_order(scores: Sequence[float]) -> list[int]:
    """Block numbers in the order of removal: the least important first, and of two that are equal the earlier one.

    `scores` has the importance of each block. Raises ValueError if a score is not finite.
    """
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"importance {list(scores)} is not finite: train the network again before pruning it")
    # `sorted` is stable, which leaves blocks of equal importance in their order.
    return sorted(range(len(scores)), key=lambda block: scores[block])


def blocks_to_keep(scores: Sequence[float], depth: int) -> list[int]:
    """The `depth` most important blocks, in the network's order. Raises ValueError for a depth outside 1..blocks."""
    if not 1 <= depth <= len(scores):
        raise ValueError(f"cannot keep {depth} of {len(scores)} blocks: choose a depth from 1 to {len(scores)}")
    return sorted(removal_order(scores)[len(scores) - depth :])


def prune_network(network: Sana, keep: Sequence[int]) -> Sana:
    """A copy of `network` with only the blocks `keep`. Raises ValueError unless these are ascending block numbers."""
    blocks = list(network.blocks)
    if list(keep) != sorted(set(keep) & set(range(len(blocks)))):
        raise ValueError(f"cannot keep blocks {list(keep)}: name each once, ascending, from 0 to {len(blocks) - 1}")
    return with_blocks(network, [blocks[i] for i in keep])

"""Random choices of blocks. A choice by importance is compared with them, by held-out loss and by GenEval."""

import torch

from tasks.computing.seeds import generator


def random_choices(blocks: int, depth: int, count: int, seed: int) -> list[list[int]]:
    """`count` random choices of `depth` of the `blocks` blocks, each ascending.

    A smaller `count` gives the first choices of a larger one.
    """
    return [_choice(blocks, depth, seed, index) for index in range(count)]


def _choice(blocks: int, depth: int, seed: int, index: int) -> list[int]:
    order = torch.randperm(blocks, generator=generator(seed, "prune", depth, "random choice", index))
    return sorted(order[:depth].tolist())

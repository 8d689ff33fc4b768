"""The random choices of blocks that a choice by importance is compared with: by held-out loss and by GenEval."""

import torch

from tasks.computing.seeds import generator


def random_choices(blocks: int, depth: int, count: int, seed: int) -> list[list[int]]:
    """`count` random choices of `depth` of the blocks, each ascending. Fewer choices are the first of more."""
    return [_choice(blocks, depth, seed, index) for index in range(count)]


def _choice(blocks: int, depth: int, seed: int, index: int) -> list[int]:
    order = torch.randperm(blocks, generator=generator(seed, "prune", depth, "random choice", index))
    return sorted(order[:depth].tolist())

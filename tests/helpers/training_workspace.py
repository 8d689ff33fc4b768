"""A short training of a small network on random latents, for tests of how it breaks off and goes on: its params, how it
is broken off, and what it has reported.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.training.training_loop import Trainer

CHANGES = {
    "compute.device": "cpu",
    "compute.threads": 1,
    "network.hidden_size": 64,
    "network.cross_heads": 4,
    "pretrain.depth": 2,
    "pretrain.steps": 60,
    "pretrain.batch_size": 8,
    "pretrain.grad_accumulation": 2,
    "pretrain.warmup_steps": 5,
    "pretrain.checkpoint_every": 7,
    "pretrain.evaluate_every": 10,
}
SAMPLES = 37
"""Captioned latents to train on."""


class BrokenOff(Exception):
    """The training ends here, as if its process had been killed."""


def stopping_at(step: int) -> Callable[[Trainer], None]:
    """An `update` for a trainer that breaks off after `step` updates."""
    update = Trainer.update

    def breaking(trainer: Trainer) -> None:
        if trainer.step == step:
            raise BrokenOff
        update(trainer)

    return breaking


def spooled(folder: Path) -> list[dict[str, Any]]:
    """The rows of the only spool in a folder."""
    (spool,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in spool.read_text().splitlines()]

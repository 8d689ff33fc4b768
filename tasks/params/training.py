"""Sections `pretrain`, `train` and `finetune`: runs of the training loop."""

from dataclasses import dataclass
from typing import Literal

from model.numerics import CheckpointKey
from tasks.params.checks import check, or_list, positive

CAMES = ("came8bit", "came")
"""The project's own optimizers, which round bfloat16 weights stochastically and can step within the backward pass."""


@dataclass(frozen=True)
class Training:
    """A run of the training loop."""

    steps: int
    batch_size: int
    grad_accumulation: int
    optimizer: Literal["came8bit", "came", "adamw8bit", "adamw"]
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: Literal["constant", "cosine"]
    weights: Literal["float32", "bfloat16"]
    step_in_backward: bool
    clip_norm: float | None
    ema_decay: float
    evaluate_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        positive(self, "batch_size", "grad_accumulation", "learning_rate")
        if self.clip_norm is not None:
            positive(self, "clip_norm")
        positive(self, "evaluate_every", "checkpoint_every")
        check(self.steps >= 0, f"steps is {self.steps}: it must be 0 (weights stay as they are) or above")
        check(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}: it must be 0 or above")
        check(0 <= self.warmup_steps <= self.steps, f"warmup_steps is {self.warmup_steps}: it must be in [0, steps]")
        check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}: it must be in [0, 1)")
        check(
            self.batch_size % self.grad_accumulation == 0,
            f"batch_size {self.batch_size} is no multiple of grad_accumulation {self.grad_accumulation}",
        )
        self._check_bfloat16_weights()
        self._check_step_in_backward()

    def _check_bfloat16_weights(self) -> None:
        if self.weights == "float32":
            return
        check(
            self.optimizer in CAMES,
            f"weights is bfloat16 with optimizer {self.optimizer}: it would round small updates away; {or_list(CAMES)} "
            "round them stochastically",
        )
        check(
            self.ema_decay == 0,
            f"ema_decay is {self.ema_decay} with weights bfloat16: such an average would stand still; set it to 0",
        )

    def _check_step_in_backward(self) -> None:
        if not self.step_in_backward:
            return
        why = "with step_in_backward, which keeps no gradients"
        check(self.optimizer in CAMES, f"optimizer is {self.optimizer} with step_in_backward: choose {or_list(CAMES)}")
        check(self.clip_norm is None, f"clip_norm is {self.clip_norm} {why}: set it to null")
        check(self.grad_accumulation == 1, f"grad_accumulation is {self.grad_accumulation} {why}: set it to 1")


@dataclass(frozen=True)
class Pretrain(Training):
    """The small model: trained from random weights or on from those of `path`; 0 steps take these over as they are."""

    path: str | None
    checkpoint_key: CheckpointKey
    depth: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "depth")
        check(self.steps > 0 or self.path is not None, "steps is 0 and path is None: random weights need training")

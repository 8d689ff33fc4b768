"""Sections `pretrain`, `train`, `scratch`, `finetune` and `sft`: runs of the training loop."""

from dataclasses import dataclass
from typing import Literal

from model.numerics import CheckpointKey
from tasks.params.checks import check, or_list, positive

CAMES = ("came8bit", "came")
"""The project's own optimizers. They round bfloat16 weights stochastically and can step within the backward pass."""


@dataclass(frozen=True)
class Training:
    """A run of the training loop."""

    data: str
    """Folder of outputs/ to learn from: encoded, or encoded-NAME of a set in `data.sets`."""
    steps: int
    """Number of updates; 0 takes the weights over as they are."""
    batch_size: int
    """Number of samples of one update, over all processes; a multiple of `grad_accumulation`."""
    grad_accumulation: int
    """Number of parts of a batch that are computed one after another."""
    optimizer: Literal["came8bit", "came", "adamw8bit", "adamw"]
    """Optimizer: came8bit, came, adamw8bit or adamw. came8bit is the paper's (SANA-1.5 section 2.3)."""
    learning_rate: float
    """Peak learning rate."""
    weight_decay: float
    """Decoupled weight decay; 0 is none."""
    warmup_steps: int
    """Number of updates over which the rate rises linearly; at most `steps`.

    A long warm-up suits CAME without `bias_correction`, whose first updates are large (docs/log.md).
    """
    bias_correction: bool
    """Whether CAME corrects its means for beginning at 0, as AdamW does; the paper's does not.

    Without it CAME's first update is about 11 times the rate (docs/log.md). Only came8bit and came take it.
    """
    schedule: Literal["constant", "cosine"]
    """Rate after the warm-up: constant or cosine (to a tenth of the peak)."""
    weights: Literal["float32", "bfloat16"]
    """Number format of the weights: float32 or bfloat16 (rounded stochastically).

    bfloat16 takes half the memory. It needs came8bit or came, `compute.dtype` bfloat16, and an `ema_decay` of 0.
    """
    weight_correction: bool
    """Whether the optimizer keeps 8 bits more of each bfloat16 weight.

    It then rounds to nearest, and not stochastically. Weights are nearly float32's, at 3 bytes each
    (`kernels.came8bit.correction`). The network reads the bfloat16 alone, which is also what a checkpoint holds. On a
    GPU this optimizer steps without Triton's kernels. The option is ours.
    """
    step_in_backward: bool
    """Whether each gradient is freed as soon as its parameter has made its step.

    This allows no clipping, no accumulation and one process only, and needs came8bit or came.
    """
    recompute_blocks: int
    """Number of blocks, from the first, that the backward pass computes once more; 0 is none.

    This is activation checkpointing, also known as gradient checkpointing: of such a block only the inputs are kept. It
    changes no bit of the result. A number at or above the depth means all blocks.
    """
    clip_norm: float | None
    """Largest norm of the gradient over all parameters; null leaves it as it is."""
    ema_decay: float
    """Decay of the weights' running average, in [0, 1), which is what is evaluated and saved.

    With 0 the weights themselves are. An average over very few steps would be of the weights before them.
    """
    evaluate_every: int
    """Number of updates between measurements of the held-out loss."""
    checkpoint_every: int
    """Number of updates between states on disk that training resumes from."""
    preview_every: int
    """Number of updates between sheets of pictures in MLflow; 0 is none.

    They are named `preview`. It changes no output (`tasks.training.preview`). With sharded parameters there are none.
    """
    score_every: int
    """Number of updates between scores of 52 pictures in MLflow; 0 is none.

    They are named after the scorer, such as `geneval_short/overall`. It changes no output
    (`tasks.evaluation.short_evaluation`). It needs the outputs of autoencoder, text_encoder and scorer. With sharded
    parameters there are none.
    """

    def __post_init__(self) -> None:
        positive(self, "batch_size", "grad_accumulation", "learning_rate")
        if self.clip_norm is not None:
            positive(self, "clip_norm")
        positive(self, "evaluate_every", "checkpoint_every")
        check(self.preview_every >= 0, f"preview_every is {self.preview_every}: it must be 0 (none) or above")
        check(self.score_every >= 0, f"score_every is {self.score_every}: it must be 0 (none) or above")
        check(self.steps >= 0, f"steps is {self.steps}: it must be 0 (weights stay as they are) or above")
        check(self.recompute_blocks >= 0, f"recompute_blocks is {self.recompute_blocks}: it must be 0 or above")
        check(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}: it must be 0 or above")
        check(0 <= self.warmup_steps <= self.steps, f"warmup_steps is {self.warmup_steps}: it must be in [0, steps]")
        check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}: it must be in [0, 1)")
        check(
            self.batch_size % self.grad_accumulation == 0,
            f"batch_size {self.batch_size} is no multiple of grad_accumulation {self.grad_accumulation}",
        )
        check(
            not self.bias_correction or self.optimizer in CAMES,
            f"bias_correction is true with optimizer {self.optimizer}, which corrects by itself: set it to false",
        )
        self._check_bfloat16_weights()
        self._check_step_in_backward()

    def _check_bfloat16_weights(self) -> None:
        if self.weights == "float32":
            check(not self.weight_correction, "weight_correction is true with weights float32: set it to false")
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
class Finetune(Training):
    """The short training of the cut models."""

    teacher: Literal["none", "velocity", "features"]
    """What the uncut model teaches: none, velocity, or features (velocity and blocks' outputs).

    With none a cut model learns from the data alone, as in the paper. A teacher is ours (`tasks.training.teacher`); it
    costs a forward pass of the uncut model in each update.
    """


@dataclass(frozen=True)
class Pretrain(Training):
    """The training of the small model, which starts from random weights or from those of `path`."""

    path: str | None
    """Weights to start from (.pth, .safetensors, a diffusers folder); null draws random ones.

    The folder of a model of another workspace will do too, such as runs/paper/outputs/grown. With `steps` 0 the weights
    are taken over as they are.
    """
    checkpoint_key: CheckpointKey
    """Which weights of a .pth that holds both: state_dict or state_dict_ema.

    The first are those of the last step, the second their average.
    """
    depth: int
    """Number of blocks of the small model. The paper's has 20 (SANA-1.5 section 3.1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "depth")
        check(self.steps > 0 or self.path is not None, "steps is 0 and path is None: random weights need training")


@dataclass(frozen=True)
class Scratch(Training):
    """The training of deep networks from random weights, as the control of growth (SANA-1.5 figure 2)."""

    depths: tuple[int, ...]
    """Numbers of blocks of the networks, each a model named scratch-D; [] trains none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        right = len(set(self.depths)) == len(self.depths) and all(depth >= 1 for depth in self.depths)
        check(right, f"depths is {list(self.depths)}: each must be 1 or above, and be named once")
        check(self.steps > 0, "steps is 0: random weights need training")


@dataclass(frozen=True)
class Sft(Training):
    """Supervised fine-tuning of finished models on chosen pairs (SANA-1.5 sections 3.1 and 3.2, table 4)."""

    models: tuple[str, ...]
    """Models that are fine-tuned, each to one named sft-MODEL; [] fine-tunes none.

    They are among small, grown, pruned-D and finetuned-D.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(set(self.models)) == len(self.models), f"models is {list(self.models)}: name each model once")

"""Fine-tuning a cut model with the uncut model as its teacher. This is ours; the paper fine-tunes on data alone.

The teacher sees the samples that the cut model sees, with the same noise, times and captions. Its velocity takes the
place of the data's in the loss. With `features` the cut model's blocks are also held to the teacher's: a kept block has
to do what it did and what the removed blocks behind it did, so its output is held to the teacher's tokens before the
next kept block, or behind the teacher's last block. Published work on pruned diffusion transformers (such as
TinyFusion, arXiv 2412.01199) trains on outputs and features of the uncut model in this way.

Shapes: B samples, N tokens, D channels, C latent channels, H and W of a latent.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network import Sana
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch, predicted_velocity

FEATURE_WEIGHT = 1.0
"""Weight of the mean error of the blocks, each relative to the mean square of the teacher's tokens of the sample."""


@dataclass(frozen=True)
class Lesson:
    """What the teacher computes for a batch: its velocity (B, C, H, W), and tokens (B, N, D) for each kept block."""

    velocity_BCHW: Tensor
    tokens: tuple[Tensor, ...]


class Teacher:
    """The uncut network, which is not trained. `taught` are the numbers of its blocks whose outputs it teaches."""

    def __init__(self, network: Sana, taught: Sequence[int] = ()) -> None:
        """Freeze the network."""
        self.network, self.taught = network.requires_grad_(False), taught

    @torch.no_grad()
    def lesson(self, batch: NoisedBatch) -> Lesson:
        """The network's velocity and tokens for a batch. The caller sets autocast."""
        with block_outputs(self.network, self.taught) as tokens:
            velocity_BCHW = predicted_velocity(self.network, batch)
        return Lesson(velocity_BCHW.float(), tuple(tokens))


class TaughtLoss(FlowMatchingLoss):
    """The mean squared error to the teacher's velocity, and to its tokens where the lesson has some.

    Without a lesson it is the loss to the data's velocity, by which models are compared.
    """

    def forward(self, batch: NoisedBatch, lesson: Lesson | None = None) -> Tensor:
        """Loss of each sample (B,)."""
        if lesson is None:
            return super().forward(batch)
        compared = range(len(lesson.tokens))  # all blocks, or none
        with block_outputs(self.network, compared) as tokens:
            predicted_BCHW = predicted_velocity(self.network, batch)
        error = F.mse_loss(predicted_BCHW.float(), lesson.velocity_BCHW, reduction="none")
        loss_B = error.mean(dim=(1, 2, 3))
        if not tokens:
            return loss_B
        errors = [relative_error(own, taught) for own, taught in zip(tokens, lesson.tokens, strict=True)]
        return loss_B + FEATURE_WEIGHT * torch.stack(errors).mean(0)


def taught_blocks(kept: Sequence[int], depth: int) -> list[int]:
    """For each block that was kept of `depth`, the teacher's block whose output it should have.

    Of 8 blocks with 0, 2 and 3 kept these are 1, 2 and 7.
    """
    return [*(block - 1 for block in kept[1:]), depth - 1]


def relative_error(tokens_BND: Tensor, taught_BND: Tensor) -> Tensor:
    """The mean squared difference of each sample (B,), relative to the mean square of its taught tokens."""
    taught_BND = taught_BND.float()
    error = F.mse_loss(tokens_BND.float(), taught_BND, reduction="none")
    return error.mean(dim=(1, 2)) / taught_BND.square().mean(dim=(1, 2))


@contextmanager
def block_outputs(network: Sana, blocks: Iterable[int]) -> Iterator[list[Tensor]]:
    """A list that the outputs (B, N, D) of these blocks, in ascending order, are added to while it is open."""
    noted: list[Tensor] = []

    def note(_block: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        noted.append(output)

    hooks = [network.blocks[block].register_forward_hook(note) for block in blocks]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()

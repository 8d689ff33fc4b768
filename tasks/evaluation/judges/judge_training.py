"""Training of the judge on (picture, prompt) pairs that the scorer has labelled.

The scorer labels each picture for every training prompt, not only for the prompt that it was drawn for (its own
prompt). A step asks the judge about each of its pictures with its own prompt, which is the judge's task, and with many
other prompts, which teach it to see. Here we leave the paper: the published judge sees a picture with its own prompt
alone, but has a thousand times as many pictures.

Shapes: Q pictures, L prompts, B pictures of a batch, K other prompts of a batch, T text tokens, E caption channels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.text_encoder import pad
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_dataset import to_unit_range
from tasks.data.sample_order import batch_indices
from tasks.evaluation.judges.judge_network import JudgeNetwork
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.params.evaluation_params import Judge
from tasks.system.progress import progress
from tasks.training.short_training import check_finite, loss_and_norm

OTHER_PROMPTS = 64
"""Other prompts of a step (K), which all its pictures are asked about."""

WEIGHT_DECAY = 0.01
PROMPT_RATE = 0.5
"""Learning rate of the prompt's half of the judge, as a share of the picture's: it has less to learn."""

WARMUP_SHARE = 0.1
CLIP_NORM = 1.0
LEAST_SHARE = 0.02
"""A prompt's share of yes, and of no, counts as at least this when labels are balanced: no weight is above 25."""


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures, the index of each picture's own prompt, and the scorer's verdict on each picture for every prompt."""

    pictures_QHW3: NDArray[np.uint8]
    own_Q: NDArray[np.int64]
    yes_QL: NDArray[np.bool_]

    def own_yes(self) -> NDArray[np.bool_]:
        """Verdict (Q,) on each picture for its own prompt."""
        return np.take_along_axis(self.yes_QL, self.own_Q[:, None], axis=1)[:, 0]


def train_judge(
    judge: JudgeNetwork,
    data: LabelledPictures,
    prompts: Sequence[Prompt],
    texts: Sequence[Tensor],
    training: Judge,
    seed: int,
    dtype: str,
) -> list[dict[str, float]]:
    """Train the judge in place; returns rows of step and loss. `texts` are the embeddings (T, E) of the L prompts.

    Raises UserError at the first loss or gradient that is not finite, before its update.
    """
    device = next(judge.parameters()).device
    text_LTE, mask_LT = (tensor.to(device) for tensor in pad(texts))
    share_L = torch.from_numpy(data.yes_QL.mean(axis=0)).float().clamp(LEAST_SHARE, 1 - LEAST_SHARE)

    def loss(step: int) -> Tensor:
        rows = batch_indices(derive(seed, "judge"), step, training.batch_size, len(data.own_Q))
        others = draw_others(prompts, numpy_generator(seed, "judge prompts of a step", step))
        asked = np.concatenate([data.own_Q[rows], others])
        pictures = to_unit_range(data.pictures_QHW3[rows]).to(device)
        with autocast(device.type, dtype):
            logits = judge(pictures, text_LTE[asked], mask_LT[asked])
        yes = torch.from_numpy(data.yes_QL[np.ix_(rows, asked)])
        return judge_loss(logits, yes.to(device), share_L[others].to(device))

    return descend(judge, loss, training.steps, training.learning_rate, "judge")


def descend(
    judge: JudgeNetwork, loss: Callable[[int], Tensor], steps: int, learning_rate: float, section: str
) -> list[dict[str, float]]:
    """Make `steps` updates of a judge on `loss(step)`, whose first step is 0; returns rows of step and loss.

    Raises UserError, naming the section of params, at the first loss or gradient that is not finite, before its update.
    """
    optimizer, schedule = _optimizer(judge, steps, learning_rate)
    history, weights = [], [*judge.parameters()]
    judge.train()
    with progress(section, steps) as meter:
        for step in range(steps):
            value = loss(step)
            optimizer.zero_grad()
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(judge.parameters(), CLIP_NORM)
            check_finite(value.item(), norm.item(), step, section, partial(loss_and_norm, loss, step, weights))
            optimizer.step()
            schedule.step()
            history.append({"step": step + 1, "loss": value.item()})
            meter.advance(note=f"loss {value.item():.4f}")
    judge.eval()
    return history


def draw_others(prompts: Sequence[Prompt], rng: np.random.Generator) -> NDArray[np.int64]:
    """The indices of K different prompts, with each task as likely as another.

    Otherwise nearly all would come from the tasks with the most prompts, for which nearly every picture is a no.
    """
    sizes = Counter(prompt.tag for prompt in prompts)
    chances = np.array([1 / sizes[prompt.tag] for prompt in prompts])
    return rng.choice(len(prompts), min(OTHER_PROMPTS, len(prompts)), replace=False, p=chances / chances.sum())


def judge_loss(logits: Tensor, yes: Tensor, share_K: Tensor) -> Tensor:
    """The cross-entropy of each picture's own prompt, plus the balanced cross-entropy of the other prompts.

    `logits` and `yes` are (B, B + K). The first B columns are the own prompts of the B pictures; only the diagonal
    counts there. The last K columns are the other prompts. `share_K` is each other prompt's share of yes among all
    pictures. The weights give yes and no the same total for each prompt. Without them the judge would first learn which
    prompts are rarely right, whatever the picture.
    """
    losses = F.binary_cross_entropy_with_logits(logits, yes.to(logits), reduction="none")
    others = slice(len(logits), None)
    weights_BK = torch.where(yes[:, others], 0.5 / share_K, 0.5 / (1 - share_K))
    return losses.diagonal().mean() + (losses[:, others] * weights_BK).mean()


def _optimizer(
    judge: JudgeNetwork, steps: int, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a rate for each half of the judge, and one cycle of both rates."""
    rates = [learning_rate, PROMPT_RATE * learning_rate]
    groups = [{"params": [*half.parameters()]} for half in (judge.picture, judge.prompt)]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, steps, pct_start=WARMUP_SHARE, cycle_momentum=False
    )
    return optimizer, schedule

"""Training of the judge on (picture, prompt) pairs that the scorer has labelled.

A picture answers for more than the prompt it was drawn for: the scorer labels it for every training prompt, and a step
asks each of its pictures about the prompts of all of them. The published judge sees each picture with its own prompt
alone, but has a thousand times as many pictures.

Shapes: Q pictures, L prompts, B pictures of a batch, T text tokens, E caption channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor

from model.text_encoder import pad
from tasks.data.order import batch_indices
from tasks.data.pictures import to_unit_range
from tasks.data.vocabulary import Line
from tasks.geneval.detector import Detection, Detector
from tasks.geneval.judge import JudgeNetwork
from tasks.geneval.rules import judge_picture
from tasks.params import Judge
from tasks.precision import autocast
from tasks.progress import progress
from tasks.seeds import derive

WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1
CLIP_NORM = 1.0
LEAST_SHARE = 0.02
"""A prompt's share of yes (or no) counts as at least this when its labels are balanced, which bounds their weights."""


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures, the prompt that each was drawn for, and the scorer's verdict on each picture for every prompt."""

    pictures_QHW3: NDArray[np.uint8]
    own_Q: NDArray[np.int64]
    yes_QL: NDArray[np.bool_]

    def own_yes(self) -> NDArray[np.bool_]:
        """Verdict (Q,) on each picture for its own prompt."""
        return np.take_along_axis(self.yes_QL, self.own_Q[:, None], axis=1)[:, 0]


def label(pictures_QHW3: NDArray[np.uint8], lines: Sequence[Line], detector: Detector) -> NDArray[np.bool_]:
    """The scorer's verdict (Q, L) on every picture for every prompt; each picture is searched once."""
    yes_QL = np.zeros((len(pictures_QHW3), len(lines)), dtype=bool)
    for row, picture, found in zip(yes_QL, pictures_QHW3, detector.detect(pictures_QHW3), strict=True):
        colours = _colours(detector, picture, found)

        def colours_of(some: Sequence[Detection], colours: dict[int, str] = colours) -> list[str]:
            return [colours[id(detection)] for detection in some]

        row[:] = [judge_picture(line, found, colours_of, detector.thresholds).correct for line in lines]
    return yes_QL


def _colours(detector: Detector, picture: NDArray[np.uint8], found: Sequence[Detection]) -> dict[int, str]:
    """The colour of every detection by its identity, asked for one class at a time as the detector wants it."""
    colours = {}
    for name in {detection.class_name for detection in found}:
        same = [detection for detection in found if detection.class_name == name]
        colours.update(zip(map(id, same), detector.colours(picture, same), strict=True))
    return colours


def train_judge(
    judge: JudgeNetwork, data: LabelledPictures, texts: Sequence[Tensor], training: Judge, seed: int, dtype: str
) -> list[dict[str, float]]:
    """Train in place; returns rows of step and loss. `texts` are the embeddings (T, E) of the L prompts."""
    device = next(judge.parameters()).device
    text_LTE, mask_LT = (tensor.to(device) for tensor in pad(texts))
    optimizer = torch.optim.AdamW(judge.parameters(), training.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, training.steps, pct_start=WARMUP_SHARE, cycle_momentum=False
    )
    share_L = torch.from_numpy(data.yes_QL.mean(axis=0)).float().clamp(LEAST_SHARE, 1 - LEAST_SHARE)
    history = []
    judge.train()
    with progress("judge", training.steps) as meter:
        for step in range(training.steps):
            rows = batch_indices(derive(seed, "judge"), step, training.batch_size, len(data.own_Q))
            own = data.own_Q[rows]
            pictures = to_unit_range(data.pictures_QHW3[rows]).to(device)
            with autocast(device.type, dtype):
                logits_BB = judge(pictures, text_LTE[own], mask_LT[own])
            yes_BB = torch.from_numpy(data.yes_QL[np.ix_(rows, own)])
            loss = judge_loss(logits_BB, yes_BB.to(device), share_L[own].to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(judge.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            history.append({"step": step + 1, "loss": loss.item()})
            meter.advance(note=f"loss {loss.item():.4f}")
    judge.eval()
    return history


def judge_loss(logits_BB: Tensor, yes_BB: Tensor, share_B: Tensor) -> Tensor:
    """Cross-entropy of the pictures' own prompts (the diagonal) plus that of all pairs, yes and no balanced by prompt.

    `share_B` is each prompt's share of yes among all pictures. Without the balance the judge would first learn which
    prompts are rarely right, whatever the picture.
    """
    losses_BB = F.binary_cross_entropy_with_logits(logits_BB, yes_BB.to(logits_BB), reduction="none")
    weights_BB = torch.where(yes_BB, 0.5 / share_B, 0.5 / (1 - share_B))
    return losses_BB.diagonal().mean() + (losses_BB * weights_BB).mean()


def area_under_curve(scores: NDArray[np.floating], yes: NDArray[np.bool_]) -> float:
    """Probability that a yes scores above a no, ties counted half; NaN where there is no yes or no no."""
    if yes.all() or not yes.any():
        return float("nan")
    wins = mannwhitneyu(scores[yes], scores[~yes]).statistic
    return float(wins / (yes.sum() * (~yes).sum()))

"""Scores of a network while it trains: every `score_every` steps the scorer's verdicts on a few pictures, in MLflow.

The scorer and its prompts are those of `outputs/scorer`; the pictures are drawn with the text encoder and the
autoencoder of `outputs`. These are no inputs of training in the table of stages, since no output depends on them. Until
all are there, nothing is scored, and one line says so. Nor is this module among the code that a stage depends on
(`tasks.runtime.code_digest`).

The choice of prompts and the noise of their pictures are fixed, and nothing draws from torch's own generator. So a
training writes the same bytes with and without scores, and a resumed one has the same scores at the same steps.
"""

import io
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model.network import Sana
from tasks.computing import ranks
from tasks.params.training_params import Training
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.training.fsdp_sharding import is_sharded_training

if TYPE_CHECKING:
    from tasks.evaluation.score_statistics import Score
    from tasks.evaluation.short_scoring import ShortScoring

PROMPTS = 52
"""Prompts of an evaluation, spread evenly over the scorer's tasks; one picture of each is drawn."""
LIMIT = 0.03
"""The share of a training's time that evaluations should stay below. One line says so if they will not."""
NEEDED = (paths.AUTOENCODER / "config.json", paths.TEXT_ENCODER / "config.json", paths.SCORER / "prompts.json")
"""A file of each output that is needed.

A stage's output is put in place whole, so one file tells of all. The names stand here once more, as importing the
modules that write the files takes seconds.
"""


class ShortEvaluation:
    """Scores one training. The network must have its averaged weights when `evaluate` is called, on all ranks."""

    def __init__(self, context: Context, training: Training) -> None:
        """Note what is scored. If scores are asked for and cannot be had, now or at all, one line says why."""
        self.context, self.training = context, training
        self.every = training.score_every
        self.scoring: ShortScoring | None = None
        self._said_what_is_missing = self._said_share = False
        self._opening_seconds = 0.0
        self.begin(0)
        if 0 < self.every <= training.steps:
            if is_sharded_training(context.params.compute):
                self._stop("the parameters are sharded, and drawing would need them whole")
            elif (missing := missing_output()) is not None:
                self._say_what_is_missing(missing)

    def begin(self, step: int) -> None:
        """Training begins after `step` updates: its time is taken from here on."""
        self._begun_at, self._begun, self._evaluated = step, time.perf_counter(), 0.0

    def due(self, step: int) -> bool:
        """Whether the network is scored after `step` updates."""
        return self.every > 0 and step > 0 and step % self.every == 0

    def evaluate(self, network: Sana, step: int) -> None:
        """Score the network after `step` updates and log the score. All ranks call this and decide alike."""
        started = time.perf_counter()
        if self.scoring is None:
            if (missing := agreed(missing_output())) is not None:
                self._say_what_is_missing(missing)
                return
            if (why := agreed(self._open())) is not None:
                self._stop(why)
                return
            self._opening_seconds = time.perf_counter() - started
        assert self.scoring is not None
        opened = time.perf_counter()
        with redirect_stdout(io.StringIO()):  # the bars of drawing and scoring would be drawn over that of the training
            score = self.scoring.score(network)
        if score is None:
            self._stop("the GPU has no memory left for them")
            return
        ended = time.perf_counter()
        self._evaluated += ended - started
        seconds = {"speed/score_seconds": ended - opened}
        self.context.tracker.log_metrics(metrics(self.scoring.scorer.name, score) | seconds, step=step)
        self._say_share(step, ended, ended - opened)

    def _open(self) -> str | None:
        """Load what is needed beside the network. Returns why that cannot be done, or None."""
        from tasks.evaluation.short_scoring import open_short_scoring  # takes seconds: diffusers, transformers

        try:
            self.scoring = open_short_scoring(self.context.params, PROMPTS, self.context.device)
        except torch.OutOfMemoryError:
            return "the GPU has no memory left for them"
        except (UserError, ValueError, OSError) as error:
            return " ".join(str(error).split())
        return None

    def _say_share(self, step: int, now: float, seconds: float) -> None:
        """Say once, after the first evaluation behind an update, if evaluations will take more than their share."""
        if self._said_share or step == self._begun_at:
            return
        self._said_share = True
        step_seconds = (now - self._begun - self._evaluated) / (step - self._begun_at)
        cost = EvaluationCost(self.training.steps, step_seconds, self._opening_seconds, seconds)
        if cost.share(self.every) > LIMIT:
            print(f"{self.context.name}: {cost.advice(self.every)}", flush=True)

    def _say_what_is_missing(self, missing: str) -> None:
        if not self._said_what_is_missing:
            print(f"{self.context.name}: no scores while it trains (score_every) as long as {missing}", flush=True)
        self._said_what_is_missing = True

    def _stop(self, why: str) -> None:
        print(f"{self.context.name}: no scores while it trains (score_every): {why}", flush=True)
        self.every = 0


@dataclass(frozen=True)
class EvaluationCost:
    """What scores cost a training: its updates, and the seconds of an update, of the first loading, of an evaluation.

    The seconds of an update include what else is done between updates, such as held-out losses and states on disk.
    """

    steps: int
    step_seconds: float
    opening_seconds: float
    evaluation_seconds: float

    def share(self, every: int) -> float:
        """The share of the whole training's time, from the first update to the last, of an evaluation at so many."""
        taken = self.opening_seconds + self.steps // every * self.evaluation_seconds
        return taken / (taken + self.steps * self.step_seconds)

    def advice(self, every: int) -> str:
        """The line that says the share, and the least interval that keeps it within the limit."""
        fitting = next((longer for longer in self._intervals(every) if self.share(longer) <= LIMIT), 0)
        what = f"score_every {fitting} keeps them within" if fitting else "a single one is above"
        return (
            f"scores while it trains (score_every {every}) take {self.share(every):.1%} of its time: "
            f"{self.evaluation_seconds:.2g} s each and {self.opening_seconds:.2g} s of loading, beside "
            f"{self.step_seconds:.2g} s a step; {what} {LIMIT:.0%}"
        )

    def _intervals(self, every: int) -> list[int]:
        """The least interval for each smaller number of evaluations, down to one."""
        return [self.steps // (count + 1) + 1 for count in range(self.steps // every - 1, 0, -1)]


def missing_output() -> str | None:
    """Which output of another stage is missing, and what to do; None if all are there."""
    absent = [file.parent for file in NEEDED if not file.is_file()]
    if not absent:
        return None
    stages = " and ".join(folder.name for folder in absent)
    return f"{' and '.join(map(str, absent))} {'is' if len(absent) == 1 else 'are'} not there: run {stages}"


def agreed(why: str | None) -> str | None:
    """The reason of the first rank that has one why it cannot go on. All ranks call this, and so decide alike."""
    return next((each for each in ranks.gather(why) if each is not None), None)


def metrics(scorer: str, score: "Score") -> dict[str, float]:
    """A score by the names that MLflow shows it under: `geneval_short/overall`, its interval, and each task's."""
    overall, name = score.overall, f"{scorer}_short"
    numbers = {f"{name}/overall": overall.value, f"{name}/low": overall.low, f"{name}/high": overall.high}
    return numbers | {f"{name}/{task}": interval.value for task, interval in score.tasks.items()}

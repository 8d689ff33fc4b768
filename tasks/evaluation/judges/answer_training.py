"""Fine-tuning of a vision-language model on yes and no, as SANA-1.5's judge was made (section 2.5, appendix B).

The published judge is NVILA-2B, fine-tuned for one epoch on 2 million pictures with a learning rate of 2e-5, Adam, a
warm-up over .03 of the updates and a cosine to 0. The loss is -log of the probability by which the judge is read: that
the first token of its answer begins the right word, out of all words. Nothing else of the answer is learned.

The loop runs on accelerate and resumes to the bit: a step is a function of the seed, its number and the state before
it. The network stays in evaluation mode, since dropout would draw from a stream that no state holds.

Shapes: Q pictures, B pictures of a batch, V words of the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.computing.seeds import derive
from tasks.data.sample_order import batch_indices
from tasks.evaluation.judges.example_shards import Examples
from tasks.evaluation.judges.image_text_model import ImageTextModel
from tasks.evaluation.judges.judge_template import QUESTION
from tasks.params.judge_finetune_params import JudgeFinetune
from tasks.runtime.context import Context, Interrupted
from tasks.system.progress import progress
from tasks.training.ema import Ema
from tasks.training.interrupts import noted_interrupts
from tasks.training.short_training import check_finite
from tasks.training.training_state import load_state, save_state

CLIP_NORM = 1.0
"""Largest norm of the gradient: the default of transformers' Trainer, by which NVILA is trained."""


@dataclass(frozen=True)
class ExampleSets:
    """The training splits of several folders, as one sequence of their balanced examples."""

    sets: Sequence[Examples]

    def __len__(self) -> int:
        return sum(len(one.balanced) for one in self.sets)

    def example(self, number: int) -> tuple[NDArray[np.uint8], str, bool]:
        """The picture (H, W, 3), the question about it and the right answer of one example."""
        for one in self.sets:
            if number < len(one.balanced):
                index = int(one.balanced[number])
                question = QUESTION.format(prompt=one.prompt_of(index).text)
                return one.pictures.pictures([index])[0], question, bool(one.yes_PN.flat[index])
            number -= len(one.balanced)
        raise IndexError("there are not so many examples")


class AnswerTrainer:
    """One fine-tuning: the model, its optimizer, and `step`, the number of updates made so far."""

    def __init__(self, context: Context, model: ImageTextModel, examples: ExampleSets, chosen: JudgeFinetune) -> None:
        """Take up the state of an earlier run, if there is one."""
        self.context, self.model, self.examples, self.chosen = context, model, examples, chosen
        self.steps = max(len(examples) // chosen.batch_size, 1)  # one epoch
        # A list of what is trained, each tensor once: a model's own state has those of LoRA's frozen base, and tied
        # weights twice.
        self.trained = nn.ParameterList(one for one in model.network.parameters() if one.requires_grad)
        self.accelerator = Accelerator(
            cpu=context.device == "cpu",
            mixed_precision="bf16" if context.params.compute.dtype == "bfloat16" else "no",
            gradient_accumulation_steps=chosen.grad_accumulation,
        )
        self.optimizer = self.accelerator.prepare(torch.optim.Adam(self.trained, chosen.learning_rate))
        self.average = Ema(self.trained, 0.0)  # none is kept: the weights themselves are used
        self.step, self.history = load_state(context.state, self.trained, self.average, self.optimizer.optimizer)

    def run(self) -> list[dict[str, float]]:
        """Make the updates of one epoch; returns rows of step, loss and learning rate.

        Raises UserError at the first loss or gradient that is not finite, before its update, and Interrupted behind the
        step in which a signal came.
        """
        if self.step > 0:
            print(f"{self.context.name}: resuming after step {self.step}", flush=True)
        with noted_interrupts() as interrupts, progress(self.context.name, self.steps, self.step) as meter:
            while self.step < self.steps:
                loss = self.update()
                done = self.step == self.steps
                stopped = interrupts.signum is not None and not done
                # It is saved at the end too, so that a failure of the measurement behind it loses nothing.
                if done or stopped or self.step % self.chosen.checkpoint_every == 0:
                    self.save()
                if stopped:
                    raise Interrupted(int(interrupts.signum or 0))
                meter.advance(note=f"loss {loss:.4f}")
        return self.history.training

    def save(self) -> None:
        """Write the state that a later run resumes from."""
        save_state(self.context.state, self.step, self.trained, self.average, self.optimizer.optimizer, self.history)

    def update(self) -> float:
        """Make one update over its micro-batches; returns the mean loss."""
        chosen, parts = self.chosen, self.chosen.grad_accumulation
        # All ways of fine-tuning see the same batches, so that their results can be compared pair by pair.
        seed = derive(self.context.params.compute.seed, "judge_finetune")
        rows = batch_indices(seed, self.step, chosen.batch_size, len(self.examples))
        rate = learning_rate(chosen.learning_rate, self.step, self.steps, chosen.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for part in rows.reshape(parts, -1):
            with self.accelerator.accumulate(self.model.network):
                loss = self.loss(part)
                total += loss.item() / parts
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.trained.parameters(), CLIP_NORM)
                    check_finite(total, float(norm), self.step, "judge_finetune", lambda: self.loss_and_norm(rows))
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.step += 1
        self.history.training.append({"step": self.step, "loss": total, "learning_rate": rate})
        self.context.tracker.log_metrics({"loss": total, "learning_rate": rate}, step=self.step)
        return total

    def loss_and_norm(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """The mean loss of the examples `rows` of a step, and the norm of its gradient, without an update."""
        parts = rows.reshape(self.chosen.grad_accumulation, -1)
        self.optimizer.zero_grad()
        total = 0.0
        for part in parts:
            loss = self.loss(part)
            total += loss.item() / len(parts)
            self.accelerator.backward(loss)
        return total, float(self.accelerator.clip_grad_norm_(self.trained.parameters(), CLIP_NORM))

    def loss(self, rows: NDArray[np.int64]) -> Tensor:
        """The mean of -log P(right answer) over the examples `rows` (B,)."""
        pictures, questions, answers = zip(*(self.examples.example(int(row)) for row in rows), strict=True)
        with self.accelerator.autocast():
            logits_BV = self.model.answer_logits(pictures, questions)
        return answer_loss(logits_BV, answers, self.model.yes, self.model.no)


def answer_loss(logits_BV: Tensor, answers: Sequence[bool], yes: Sequence[int], no: Sequence[int]) -> Tensor:
    """The mean of -log of the probability of all tokens that begin the right answer."""
    log_BV = logits_BV.float().log_softmax(dim=-1)
    right = [
        log_row[list(yes if answer else no)].logsumexp(dim=0) for log_row, answer in zip(log_BV, answers, strict=True)
    ]
    return -torch.stack(right).mean()


def learning_rate(peak: float, step: int, steps: int, warmup_share: float) -> float:
    """The rate of update `step` (the first is 0): a linear warm-up from 0, then a cosine to 0.

    It is that of transformers' `get_cosine_schedule_with_warmup`, as a function of the step.
    """
    warmup = math.ceil(steps * warmup_share)
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


@torch.no_grad()
def answer_scores(model: ImageTextModel, examples: Examples, batch_size: int) -> NDArray[np.float64]:
    """log P(yes) among yes and no (P, N) of the pictures of a split.

    No picture is passed over, also where the model would probably say something else. Before the fine-tuning that may
    be the case for all.
    """
    scores: list[float] = []
    count = examples.yes_PN.size
    with progress("judging held-out pictures", count) as meter:
        for start in range(0, count, batch_size):
            rows = range(start, min(start + batch_size, count))
            questions = [QUESTION.format(prompt=examples.prompt_of(row).text) for row in rows]
            log_BV = model.answer_logits([*examples.pictures.pictures(rows)], questions).double().log_softmax(dim=-1)
            yes_B, no_B = (log_BV[:, list(tokens)].logsumexp(dim=-1) for tokens in (model.yes, model.no))
            scores += (yes_B - torch.logaddexp(yes_B, no_B)).tolist()
            meter.advance(len(rows))
    return np.array(scores).reshape(examples.yes_PN.shape)

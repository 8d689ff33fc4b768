"""The training loop. It resumes to the bit: every step is a pure function of the seed, the stage's name, the number of
the step and the state before it.

The loop uses accelerate for autocast, gradient accumulation and clipping. A loss or gradient that is not finite stops
the run before the update. The state is saved before the final evaluation, so a failure there loses nothing.

On several ranks, each rank works on its share of every micro-batch, under DDP or with shards of the parameters (FSDP2).
Decisions to stop or to refuse an update follow from numbers that all ranks have, so all ranks decide alike.
"""

import math
from contextlib import closing
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from kernels.came8bit.step_in_backward import NonFiniteGradient, StepInBackward
from kernels.optimizers import build_optimizer
from model.checkpoint import save_network
from model.network import Sana, parameter_count
from tasks.computing import ranks
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.sample_order import rank_rows
from tasks.params.training_params import Training
from tasks.runtime.context import Context, Interrupted, Metrics
from tasks.system.errors import UserError
from tasks.system.files import write_csv
from tasks.system.progress import progress
from tasks.training.batch_loader import BatchLoader, MicroBatches
from tasks.training.ema import Ema
from tasks.training.fsdp_sharding import gathered, shard, whole
from tasks.training.heldout_loss import heldout_loss
from tasks.training.interrupts import noted_interrupts
from tasks.training.learning_rate import learning_rate
from tasks.training.teacher import TaughtLoss, Teacher
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch, stage_seed
from tasks.training.training_state import load_state, save_state

LOG_EVERY = 10
HISTORY_COLUMNS = ("step", "samples", "loss", "learning_rate", "grad_norm")
HELDOUT_COLUMNS = ("step", "samples", "heldout_loss", "low", "high")


class Trainer:
    """One training run: the network, its optimizer, EMA and history, and `step`, the number of updates made so far."""

    def __init__(
        self, context: Context, network: Sana, encoded: Path, training: Training, teacher: Teacher | None = None
    ) -> None:
        """Make all ready for step 0, or for where a run before this one stopped. A `teacher` is learned from."""
        self.context, self.training, self.teacher = context, training, teacher
        self.network = network.to(context.device, getattr(torch, training.weights))
        self.dataset = EncodedDataset(encoded, "train")
        self.heldout = EncodedDataset(encoded, "heldout")
        self.batches = self._batch_loader()
        precision = "bf16" if context.params.compute.dtype == "bfloat16" else "no"
        self.accelerator = Accelerator(
            cpu=context.device == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=training.grad_accumulation,
        )
        loss = FlowMatchingLoss(self.network) if teacher is None else TaughtLoss(self.network)
        self.sharded = ranks.world_size() > 1 and context.params.compute.parallelism == "fully_shard"
        if self.sharded:
            shard(self.network, loss, context.device)
        rounding = derive(context.params.compute.seed, context.name, "rounding")
        optimizer = build_optimizer(
            training.optimizer,
            self.network.parameters(),
            training.learning_rate,
            training.weight_decay,
            rounding,
            training.bias_correction,
        )
        self.loss = self.accelerator.prepare_model(loss, evaluation_mode=self.sharded)  # sharded: no DDP
        self.optimizer = self.accelerator.prepare(optimizer)
        self.in_backward = StepInBackward(optimizer, self.network) if training.step_in_backward else None
        self.ema = Ema(self.network, training.ema_decay)
        self.step, self.history = load_state(context.state, self.network, self.ema, self.optimizer.optimizer)

    def run(self) -> Metrics:
        """Train to the last step and write the checkpoint and curves into the stage's output; returns the metrics."""
        if self.step > 0:
            print(f"{self.context.name}: resuming after step {self.step}", flush=True)
        if self.step % self.training.evaluate_every == 0:
            self.evaluate()  # before the first step, or a stop came between this step's checkpoint and its evaluation
        with (
            noted_interrupts() as interrupts,
            closing(self.batches),
            progress(self.context.name, self.training.steps, self.step) as meter,
        ):
            while self.step < self.training.steps:
                loss = self.update()
                # Gathered, so that all ranks stop after the same step though the signal may reach only one of them.
                self.after_update(max(ranks.gather(interrupts.signum or 0)) or None)
                meter.advance(note=f"loss {loss:.4f}")
        return self.finish()

    def update(self) -> float:
        """Make one optimizer step over its micro-batches; returns the mean loss."""
        training, parts = self.training, self.training.grad_accumulation
        rate = learning_rate(training, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total, norm = 0.0, None
        for i in range(parts):
            with self.accelerator.accumulate(self.loss):
                loss = self._loss_of(self.batches.micro_batch(self.step, i)).mean()
                total += loss.item() / parts
                if self.in_backward is not None:
                    self._step_in_backward(loss)
                    continue
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    total = ranks.mean(total)
                    # Clipping at infinity only measures the norm.
                    limit = math.inf if training.clip_norm is None else training.clip_norm
                    norm = gathered(self.accelerator.clip_grad_norm_(self.network.parameters(), limit)).item()
                    self._refuse_non_finite(total, norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.step += 1
        self.ema.update(self.step)
        self._log(total, norm, rate)
        return total

    def after_update(self, signum: int | None) -> None:
        """Do what is due between two steps: save, stop for a signal, evaluate. Raises Interrupted after a signal."""
        done = self.step == self.training.steps
        if done or signum is not None or self.step % self.training.checkpoint_every == 0:
            self.save()
        if signum is not None and not done:
            raise Interrupted(signum)
        if done or self.step % self.training.evaluate_every == 0:
            self.evaluate()

    def save(self) -> None:
        """Write the state that a later run resumes from."""
        save_state(self.context.state, self.step, self.network, self.ema, self.optimizer.optimizer, self.history)

    def evaluate(self) -> None:
        """Take the held-out loss of the averaged weights, unless a resumed run has it for this step already."""
        if self.history.heldout and self.history.heldout[-1]["step"] == self.step:
            return
        compute = self.context.params.compute
        self.ema.swap()
        evaluated = self.loss if self.sharded else self.network  # sharded: FSDP2 gathers the outer layers with the loss
        loss = heldout_loss(
            evaluated, self.heldout, self.context.params.diffusion, compute.seed, self.context.device, compute.dtype
        )
        self.ema.swap()
        samples = self.step * self.training.batch_size
        self.history.heldout.append(
            {"step": self.step, "samples": samples, "heldout_loss": loss.value, "low": loss.low, "high": loss.high}
        )
        self.context.tracker.log_metrics({"heldout_loss": loss.value}, step=self.step)

    def finish(self) -> Metrics:
        """Write the checkpoint of the averaged weights and the curves; returns the metrics."""
        self.evaluate()
        self.ema.swap()
        network = whole(self.network)
        if ranks.rank() == 0:
            save_network(network, self.context.out)
            write_csv(self.context.out / "history.csv", HISTORY_COLUMNS, self.history.training)
            write_csv(self.context.out / "heldout.csv", HELDOUT_COLUMNS, self.history.heldout)
        self.ema.swap()
        last = self.history.heldout[-1]
        return {
            "heldout_loss": last["heldout_loss"],
            "heldout_loss_low": last["low"],
            "heldout_loss_high": last["high"],
            "heldout_loss_before": self.history.heldout[0]["heldout_loss"],
            "depth": self.network.config.depth,
            "parameters": parameter_count(self.network),
        }

    def _batch_loader(self) -> BatchLoader:
        """The loader of this rank's share of every micro-batch."""
        params, training = self.context.params, self.training
        parts = training.grad_accumulation
        rows = rank_rows(training.batch_size, ranks.rank(), ranks.world_size(), parts).reshape(parts, -1)
        seed = stage_seed(params.compute.seed, self.context.name)
        batches = MicroBatches(self.dataset, params.diffusion, seed, training.batch_size, rows)
        return BatchLoader(batches, self.network.config.numerics, params.compute.data_workers, self.context.device)

    def _loss_of(self, batch: NoisedBatch) -> Tensor:
        """The loss of each sample (B,) of a micro-batch, to the teacher where there is one."""
        if self.teacher is None:
            return self.loss(batch)
        with autocast(self.context.device, self.context.params.compute.dtype):
            lesson = self.teacher.lesson(batch)
        return self.loss(batch, lesson)

    def _step_in_backward(self, loss: Tensor) -> None:
        """Make the backward pass, in which each parameter takes its step as soon as its gradient is there.

        Raises UserError for a gradient that is not finite. Other parameters have moved by then, so only the last
        checkpoint is whole.
        """
        assert self.in_backward is not None
        self._refuse_non_finite(loss.item(), 0.0)
        self.accelerator.backward(loss)
        try:
            self.in_backward.finish()
        except NonFiniteGradient as error:
            raise UserError(
                f"step {self.step}: the gradient of {error.parameter} is not finite, and other parameters have moved: "
                f"run again to go on from the last checkpoint in {self.context.state}, with a lower learning rate or "
                "without step_in_backward"
            ) from None

    def _log(self, loss: float, norm: float | None, rate: float) -> None:
        """Every `LOG_EVERY` steps, and at the last one, note the mean loss since the last row."""
        recent = self.history.recent
        recent.append(loss)
        if self.step % LOG_EVERY and self.step != self.training.steps:
            return
        row = {"loss": sum(recent) / len(recent), "learning_rate": rate}
        if norm is not None:  # with steps in the backward pass the gradients are never all there to be measured
            row["grad_norm"] = norm
        recent.clear()
        samples = self.step * self.training.batch_size
        self.history.training.append({"step": self.step, "samples": samples, **row})
        self.context.tracker.log_metrics(row, step=self.step)

    def _refuse_non_finite(self, loss: float, norm: float) -> None:
        """Raises UserError unless both are finite."""
        if torch.isfinite(torch.tensor([loss, norm])).all():
            return
        raise UserError(
            f"loss {loss} and gradient norm {norm} at step {self.step} are not both finite: no update was made; "
            f"lower the learning rate of params.yaml's section or use float32 (state: {self.context.state})"
        )

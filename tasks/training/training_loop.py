"""The training loop. It resumes to the bit: every step is a pure function of the seed, the stage's name, the number of
the step and the state before it.

The loop uses accelerate for autocast, gradient accumulation and clipping. Losses and gradient norms stay on the device,
so that the host does not wait for it in each step; they are read every `LOG_EVERY` steps, and before anything is saved
or evaluated. A loss or gradient that is not finite keeps its update and all later ones from being made
(`tasks.training.found_inf`), and stops the run when it is read. The step is then run once more, and one line says what
the cause is (`tasks.training.refused_step`). The state is saved before the final evaluation, so a failure there loses
nothing.

On several ranks, each rank works on its share of every micro-batch, under DDP or with shards of the parameters (FSDP2).
Decisions to stop or to refuse an update follow from numbers that all ranks have, so all ranks decide alike.
"""

import math
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from kernels.came8bit.step_in_backward import StepInBackward
from kernels.optimizers import build_optimizer
from model.checkpoint import load_network, load_shapes, save_network
from model.network import Sana, parameter_count
from tasks.computing import ranks
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.sample_order import rank_rows
from tasks.data.stage_models import loading_models
from tasks.params.training_params import Training
from tasks.runtime.context import Context, Interrupted, Metrics
from tasks.system.errors import UserError
from tasks.system.files import write_csv
from tasks.system.progress import progress
from tasks.training.batch_loader import BatchLoader, MicroBatches
from tasks.training.compiled_blocks import compile_blocks
from tasks.training.ema import Ema
from tasks.training.found_inf import FoundInf, gradient_of
from tasks.training.fsdp_sharding import gathered, is_sharded_training, load_rows, shard, sum_over_ranks, whole
from tasks.training.heldout_loss import heldout_loss
from tasks.training.interrupts import AgreedStop, noted_interrupts
from tasks.training.learning_rate import learning_rate
from tasks.training.preview import Preview
from tasks.training.refused_step import Repeated, cause_of
from tasks.training.teacher import TaughtLoss, Teacher
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch, stage_seed
from tasks.training.training_speed import TrainingSpeed
from tasks.training.training_state import StateWriter, load_state
from tasks.training.unread_steps import ReadStep, UnreadStep, UnreadSteps

LOG_EVERY = 10
"""Steps whose losses and gradient norms are read together and make a row of the history."""
SHOWN = {"loss": "loss", "grad_norm": "gradient norm"}
"""What the progress line says of a row of the history, and under which name."""
NAMED_SAMPLES = 8
"""Samples of a refused update that its error names."""
HISTORY_COLUMNS = ("step", "samples", "loss", "learning_rate", "grad_norm")
HELDOUT_COLUMNS = ("step", "samples", "heldout_loss", "low", "high")


class Trainer:
    """One training run: the network, its optimizer, EMA and history, and `step`, the number of updates made so far."""

    def __init__(
        self,
        context: Context,
        network: Sana | Path,
        encoded: Path,
        training: Training,
        teacher: Teacher | None = None,
    ) -> None:
        """Make all ready for step 0, or for where a run before this one stopped. A `teacher` is learned from.

        `network` is a network, or the folder of its checkpoint. With shards a rank reads only its rows from a folder.
        Raises UserError for a folder that does not fit, or that holds a weight that is not finite.
        """
        self.context, self.training, self.teacher = context, training, teacher
        compute, weights = context.params.compute, getattr(torch, training.weights)
        self.sharded = is_sharded_training(compute)
        folder = network if isinstance(network, Path) else None
        if isinstance(network, Path):
            with loading_models():
                network = load_shapes(network) if self.sharded else load_network(network)
        on_meta = self.sharded and folder is not None
        self.network = network.to(torch.device("meta" if on_meta else context.device), weights)
        self.network.recompute_blocks(training.recompute_blocks)
        self.dataset = EncodedDataset(encoded, "train")
        self.heldout = EncodedDataset(encoded, "heldout")
        self.micro_batches = self._micro_batches()
        workers, numerics = compute.data_workers, self.network.config.numerics
        self.batches = BatchLoader(self.micro_batches, numerics, workers, context.device)
        self.sample_losses: list[Tensor] = []  # (B,) for each micro-batch of the last step, on the device
        precision = "bf16" if compute.dtype == "bfloat16" else "no"
        self.accelerator = Accelerator(
            cpu=context.device == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=training.grad_accumulation,
        )
        loss = FlowMatchingLoss(self.network) if teacher is None else TaughtLoss(self.network)
        if compute.compile:
            compile_blocks(self.network)
        if self.sharded:
            replicas = compute.nodes if compute.parallelism == "hybrid_shard" else 1
            shard(self.network, loss, context.device, compute.dtype, replicas)
            if folder is not None:
                with loading_models():
                    load_rows(self.network, folder, context.device)
        rounding = derive(compute.seed, context.name, "rounding")
        optimizer = build_optimizer(
            training.optimizer,
            self.network.parameters(),
            training.learning_rate,
            training.weight_decay,
            rounding,
            training.bias_correction,
            training.weight_correction,
        )
        self.loss = self.accelerator.prepare_model(loss, evaluation_mode=self.sharded)  # sharded: no DDP
        self.optimizer = self.accelerator.prepare(optimizer)
        self.in_backward = StepInBackward(optimizer, self.network) if training.step_in_backward else None
        self.ema = Ema(self.network, training.ema_decay)
        self.states = StateWriter(context.state)
        self.found_inf = FoundInf(optimizer, context.device, self.sharded)
        self.unread = UnreadSteps()
        self.speed = TrainingSpeed(self.network.config, context.device, compute.dtype)
        self.preview = Preview(context, self.network, self.heldout, training, self.sharded)
        self.note = ""  # what the progress bar says beside the number of steps
        self.step, self.history = load_state(context.state, self.network, self.ema, self.optimizer.optimizer)

    def run(self) -> Metrics:
        """Train to the last step and write the checkpoint and curves into the stage's output; returns the metrics."""
        if self.step > 0:
            print(f"{self.context.name}: resuming after step {self.step}", flush=True)
        if self.step % self.training.evaluate_every == 0:
            self.evaluate()  # before the first step, or a stop came between this step's checkpoint and its evaluation
        if self.preview.due(self.step):
            self.draw_preview()  # a stop may have come between this step's checkpoint and its pictures
        with (
            self.states,  # waits for the state that is being written, also if the training ends with an error
            noted_interrupts() as interrupts,
            closing(self.batches),
            progress(self.context.name, self.training.steps, self.step) as meter,
        ):
            stop = AgreedStop(interrupts, LOG_EVERY)
            self.speed.restart()
            while self.step < self.training.steps:
                self.update()
                self.after_update(stop.signum())
                meter.advance(note=self.note)
        return self.finish()

    def update(self) -> None:
        """Make one optimizer step over its micro-batches, without waiting for the device."""
        training, parts = self.training, self.training.grad_accumulation
        rate = learning_rate(training, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses: list[Tensor] = []
        self.sample_losses = []
        norm, finite = None, {}
        for i in range(parts):
            if self.sharded:  # accelerate does the like for DDP alone
                sum_over_ranks(self.loss, last=i == parts - 1)
            with self.accelerator.accumulate(self.loss):
                losses_B = self._loss_of(self._micro_batch(i))
                self.sample_losses.append(losses_B.detach())
                loss = losses_B.mean()
                losses.append(loss.detach())
                if self.in_backward is not None:
                    finite = self._step_in_backward(loss)
                    continue
                self.accelerator.backward(loss, gradient=gradient_of(loss))
                if self.accelerator.sync_gradients:
                    # Clipping at infinity only measures the norm.
                    limit = math.inf if training.clip_norm is None else training.clip_norm
                    norm = gathered(self.accelerator.clip_grad_norm_(self.network.parameters(), limit)).detach()
                    self.found_inf.note(norm.isfinite())
                if not self.found_inf.host_skips():
                    self.optimizer.step()
                self.optimizer.zero_grad()
        self.unread.add(UnreadStep(self.step, rate, tuple(losses), norm, finite))
        self.step += 1
        if not self.found_inf.host_skips():
            self.ema.update(self.step)

    def after_update(self, signum: int | None) -> None:
        """Do what is due between two steps: save, stop for a signal, evaluate. Raises Interrupted after a signal."""
        self.states.check()
        done = self.step == self.training.steps
        if done or self.step % LOG_EVERY == 0:
            self.read_steps()
        if done or signum is not None or self.step % self.training.checkpoint_every == 0:
            self.save()
            self.speed.restart()
        if signum is not None and not done:
            self.states.wait()
            raise Interrupted(signum)
        if done or self.step % self.training.evaluate_every == 0:
            self.evaluate()
            self.speed.restart()
        if self.preview.due(self.step):
            self.draw_preview()
            self.speed.restart()

    def read_steps(self) -> None:
        """Read the numbers of the steps since the last reading, and note them in the history.

        Raises UserError for the first step whose update had to be refused.
        """
        for read in self.unread.read():
            if not read.finite:
                raise self._refusal(read)
            self._log(read)

    def save(self) -> None:
        """Copy the state that a later run resumes from. A thread writes it, and the training goes on meanwhile.

        Raises UserError if an update had to be refused.
        """
        self.read_steps()
        self.states.save(self.step, self.network, self.ema, self.optimizer.optimizer, self.history)

    def evaluate(self) -> None:
        """Take the held-out loss of the averaged weights, unless a resumed run has it for this step already."""
        if self.history.heldout and self.history.heldout[-1]["step"] == self.step:
            return
        self.read_steps()
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

    def draw_preview(self) -> None:
        """Draw the pictures of this step with the averaged weights. Rank 0 draws; the others go on and wait for it."""
        self.read_steps()  # all ranks read together
        if ranks.rank() > 0:
            return
        self.ema.swap()
        try:
            self.preview.draw(self.step)
        finally:
            self.ema.swap()

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

    def _micro_batches(self) -> MicroBatches:
        """This rank's share of every micro-batch."""
        params, training = self.context.params, self.training
        parts = training.grad_accumulation
        rows = rank_rows(training.batch_size, ranks.rank(), ranks.world_size(), parts).reshape(parts, -1)
        seed = stage_seed(params.compute.seed, self.context.name)
        return MicroBatches(self.dataset, params.diffusion, seed, training.batch_size, rows)

    def _micro_batch(self, part: int) -> NoisedBatch:
        """Micro-batch `part` of this step, counted with the time that the loop waited for it."""
        asked = time.perf_counter()
        batch = self.batches.micro_batch(self.step, part)
        self.speed.add(batch, time.perf_counter() - asked)
        return batch

    def _loss_of(self, batch: NoisedBatch) -> Tensor:
        """The loss of each sample (B,) of a micro-batch, to the teacher where there is one."""
        if self.teacher is None:
            return self.loss(batch)
        with autocast(self.context.device, self.context.params.compute.dtype):
            lesson = self.teacher.lesson(batch)
        return self.loss(batch, lesson)

    def _step_in_backward(self, loss: Tensor) -> dict[str, Tensor]:
        """Make the backward pass, in which each parameter takes its step as soon as its gradient is there.

        Returns whether the gradients were finite, by the names of their parameters. When a gradient is found not to be,
        other parameters have moved, so only the last checkpoint is whole. Without a finite loss none moves.
        """
        assert self.in_backward is not None
        self.found_inf.note(loss.detach().isfinite())
        if self.found_inf.host_skips():
            return {}
        self.accelerator.backward(loss, gradient=gradient_of(loss))
        finite = self.in_backward.finish_unread()
        self.found_inf.note(torch.stack(list(finite.values())).all())
        return finite

    def _log(self, read: ReadStep) -> None:
        """Every `LOG_EVERY` steps, and at the last one, note the mean loss since the last row."""
        recent, step = self.history.recent, read.step + 1
        recent.append(read.loss)
        if step % LOG_EVERY and step != self.training.steps:
            return
        row = {"loss": sum(recent) / len(recent), "learning_rate": read.rate}
        if read.norm is not None:  # with steps in the backward pass the gradients are never all there to be measured
            row["grad_norm"] = read.norm
        recent.clear()
        self.note = ", ".join(f"{name} {row[key]:.4g}" for key, name in SHOWN.items() if key in row)
        if (speed := self.speed.measure()) is not None:
            self.note += f", {speed}"
            self.context.tracker.log_metrics(speed.metrics(), step=step)
        self.history.training.append({"step": step, "samples": step * self.training.batch_size, **row})
        self.context.tracker.log_metrics(row, step=step)

    def _refusal(self, read: ReadStep) -> UserError:
        """What to say of a step whose update had to be refused. All ranks must call it."""
        samples, state = self._samples_of(read.step), self.context.state
        moved = math.isfinite(read.loss) and bool(read.broken)
        same_state = self.found_inf.skips and not moved
        again = partial(self._run_again, read.step) if same_state else None
        cause = cause_of(read.step, self.micro_batches, self.network, again)
        if moved:
            return UserError(
                f"step {read.step}: the gradient of {read.broken[0]} is not finite, and other parameters have moved: "
                f"{cause}; run again to go on from the last checkpoint in {state}, or train without step_in_backward "
                f"({samples})"
            )
        made = "no update was made" if self.found_inf.skips else "no state has its update"
        norm = "" if read.norm is None else f" and gradient norm {read.norm}"
        found = "is not finite" if read.norm is None else "are not both finite"
        return UserError(
            f"loss {read.loss}{norm} at step {read.step} {found}: {made}; {cause} (state: {state}; {samples})"
        )

    def _run_again(self, step: int) -> Repeated:
        """Run a refused step once more. The flag is set still, so no update is made and the state stays as it was."""
        self.step = step
        self.update()
        (again,) = self.unread.read()
        return again, self.sample_losses

    def _samples_of(self, step: int) -> str:
        """The first samples of a step's batch, by their places in the encoded data."""
        indices, size = self.micro_batches.samples_of(step), self.training.batch_size
        named = ", ".join(str(index) for index in indices[:NAMED_SAMPLES])
        return f"its {size} samples of {self.training.data}: {named}" + (", ..." if size > NAMED_SAMPLES else "")

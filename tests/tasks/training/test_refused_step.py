"""When a step of training is not finite, one line says whether the data, the weights, the code or nothing is to blame.

The step is run once more from the same state, which leaves weights, averages and the optimizer's state as they are.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from tasks.params.params_files import load_params
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.training_loop import Trainer
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES

RUNS = itertools.count()
SEVERAL = 24
"""Shards, more than one window of them."""


@contextmanager
def trainer(**changes: object) -> Iterator[Trainer]:
    """A training run at step 0 of a small network, on the encoded samples of the working directory."""
    write_params(Path.cwd(), CHANGES | {key.replace("__", "."): value for key, value in changes.items()})
    params = load_params()
    with closing(open_spool(Path("spools", str(next(RUNS))), "pretrain", tags={})) as spool:
        context = Context("pretrain", params, Path("out"), Path("states"), Tracker(spool), "cpu", 1)
        yield Trainer(context, small_network(2), paths.ENCODED, params.pretrain)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(trained: Trainer, steps: int = 5) -> str:
    """The line with which a training ends that is read after some steps."""
    for _ in range(steps):
        trained.update()
    with pytest.raises(UserError) as error:
        trained.read_steps()
    assert "\n" not in str(error.value)
    return str(error.value)


def samples_of(trained: Trainer, step: int) -> list[int]:
    """The samples that a step draws, as the loop draws them."""
    return trained.micro_batches.samples_of(step).tolist()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("member", "value"), [("latent.npy", math.nan), ("text.npy", -math.inf)])
def test_a_sample_that_is_not_finite_is_named_with_its_file_and_step(member: str, value: float, workers: int) -> None:
    write_encoded(Path.cwd(), train=SAMPLES)
    with trainer() as trained:
        chosen = samples_of(trained, 2)[5]
        assert chosen not in samples_of(trained, 0) + samples_of(trained, 1)
    for path in paths.ENCODED.iterdir():
        path.unlink()
    paths.ENCODED.rmdir()
    write_encoded(Path.cwd(), train=SAMPLES, numbers={("train", chosen, member): value})
    with trainer(compute__data_workers=workers, diffusion__caption_dropout=0.0) as trained, closing(trained.batches):
        said = refusal(trained)
    assert "at step 2 are not both finite: no update was made; the cause is the data" in said
    place = f"{paths.ENCODED}/train-{chosen // 8:05d}.tar: sample {chosen} of train (key {chosen:04d})"
    assert f"{place} holds numbers in its .{member} that are not finite" in said
    assert "more)" not in said


def with_broken_gradient(trained: Trainer) -> Any:
    weight = trained.network.blocks[1].attn.qkv.weight
    return weight.register_hook(lambda gradient: gradient * math.nan)


def test_what_comes_again_is_the_code_and_not_the_data() -> None:
    write_encoded(Path.cwd(), train=SAMPLES)
    with trainer() as trained:
        with_broken_gradient(trained)
        said = refusal(trained)
    assert "at step 0 are not both finite" in said
    assert "run once more, the step is not finite again" in said and "the cause is the code or its settings" in said
    assert "the cause is the data" not in said and "not repeatable" not in said


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_does_not_come_again_is_told_with_the_numbers_of_the_second_time(bad: str) -> None:
    write_encoded(Path.cwd(), train=SAMPLES)
    with trainer() as trained:
        trained.update()
        trained.update()
        ((_, good),) = [(read.step, read) for read in trained.unread.read()][1:]
    with trainer() as trained:
        trained.update()
        undone = once(trained) if bad == "loss" else once_in_the_gradient(trained)
        trained.update()
        undone()
        before = [parameter.clone() for parameter in trained.network.parameters()]
        said = refusal(trained, steps=1)
        assert all(map(torch.equal, before, trained.network.parameters()))
    assert "at step 1 are not both finite" in said
    wanted = f"the step has loss {good.loss:.6g} and gradient norm {good.norm:.6g}"
    assert f"not repeatable: run once more from the same state, {wanted}: suspect the memory or the GPU" in said


def once(trained: Trainer) -> Callable[[], None]:
    """Make the losses infinite until the returned function is called."""
    right = trained._loss_of
    trained._loss_of = lambda batch: right(batch) + math.inf  # type: ignore[method-assign]

    def undo() -> None:
        trained._loss_of = right  # type: ignore[method-assign]

    return undo


def once_in_the_gradient(trained: Trainer) -> Callable[[], None]:
    return with_broken_gradient(trained).remove


def test_samples_whose_loss_alone_is_not_finite_are_named() -> None:
    write_encoded(Path.cwd(), train=SAMPLES)
    with trainer() as trained:
        right, odd = trained._loss_of, samples_of(trained, 0)[6]

        def losses(batch: Any) -> Tensor:
            found = right(batch)
            # The batch of 8 has two micro-batches of 4 samples.
            return found + torch.tensor([0.0, 0.0, math.inf, 0.0]) if len(trained.sample_losses) == 1 else found

        trained._loss_of = losses  # type: ignore[method-assign]
        said = refusal(trained, steps=1)
    assert f"sample {odd} of train (key {odd:04d}) alone" in said and "leave out what is odd" in said


def test_a_weight_that_an_update_made_infinite_is_named() -> None:
    write_encoded(Path.cwd(), train=SAMPLES)
    with trainer() as trained:
        trained.update()
        with torch.no_grad():
            trained.network.final_layer.linear.weight[0, 0] = math.inf
        said = refusal(trained, steps=2)
    assert "at step 1 are not both finite" in said
    assert "its samples are finite, and the weight final_layer.linear.weight is not since an update before" in said


def test_steps_in_the_backward_pass_have_moved_and_are_not_run_again() -> None:
    write_encoded(Path.cwd(), train=SAMPLES)
    plain = {"pretrain__clip_norm": None, "pretrain__grad_accumulation": 1, "pretrain__step_in_backward": True}
    with trainer(**plain) as trained:
        with_broken_gradient(trained)
        said = refusal(trained, steps=1)
    assert said.startswith("step 0: the gradient of blocks.1.attn.qkv.weight is not finite, and other parameters have")
    assert "its samples are finite" in said and "run once more, the step" not in said


def test_the_samples_named_are_those_of_the_step_when_there_are_several_windows_of_shards() -> None:
    write_encoded(Path.cwd(), train=2 * SEVERAL, per_shard=2)
    with trainer() as trained:
        drawn = trained.dataset.stored(samples_of(trained, 0)).latents_BCHW
        read = [trained.micro_batches[part].stored.latents_BCHW for part in range(2)]
        assert torch.equal(torch.cat(read), drawn)
        with_broken_gradient(trained)
        said = refusal(trained, steps=1)
        named = [int(number) for number in re.search(r"samples of encoded: ([\d, ]+)\)", said)[1].split(", ")]
        assert named == samples_of(trained, 0)

"""Each stage that trains sees batches of its own: another order of samples, other noise, times and dropped captions."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.params.params_files import load_params
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch
from tasks.training.training_loop import Trainer
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES

STAGES = ("pretrain", "train", "finetune@6", "finetune@4")
FIELDS = ("latents_BCHW", "noise_BCHW", "sigma_B", "text_BTE")


@contextmanager
def trainer(stage: str) -> Iterator[Trainer]:
    """A training run under the name of a stage, all else alike."""
    params = load_params()
    with closing(open_spool(SPOOLS, stage, tags={})) as spool:
        context = Context(stage, params, Path("out"), Path("state", stage), Tracker(spool), "cpu", 1)
        yield Trainer(context, small_network(1), paths.ENCODED, params.pretrain)


def batches(stage: str, monkeypatch: pytest.MonkeyPatch, steps: int = 2) -> list[NoisedBatch]:
    """The micro-batches that the first steps of a stage compute their loss on."""
    seen: list[NoisedBatch] = []
    forward = FlowMatchingLoss.forward

    def noted(loss: FlowMatchingLoss, batch: NoisedBatch) -> Tensor:
        seen.append(batch)
        return forward(loss, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FlowMatchingLoss, "forward", noted)  # first, since accelerate keeps the method that it finds
        with trainer(stage) as training:
            for _ in range(steps):
                training.update()
    assert len(seen) == steps * training.training.grad_accumulation
    return seen


def equal(one: NoisedBatch, other: NoisedBatch, field: str) -> bool:
    return torch.equal(getattr(one, field), getattr(other, field))


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)
    write_params(tmp_path, CHANGES | {"diffusion.caption_dropout": 0.5})


def test_no_stage_repeats_the_batches_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {stage: batches(stage, monkeypatch) for stage in STAGES}
    for place, stage in enumerate(STAGES):
        for other in STAGES[:place]:
            for own, others in zip(seen[stage], seen[other], strict=True):
                alike = [field for field in FIELDS if equal(own, others, field)]
                assert not alike, f"{stage} and {other} see the same {alike}"


def test_a_stage_that_runs_again_sees_its_batches_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for own, again in zip(batches("train", monkeypatch), batches("train", monkeypatch), strict=True):
        assert all(equal(own, again, field) for field in FIELDS)

"""The encoders' training reports the mean loss since the row before, and stops before a bad update."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.params.params_files import PARAMS_FILE, build_params, read_yaml
from tasks.runtime.context import Context, Metrics
from tasks.stages import Stage
from tasks.system.errors import UserError
from tasks.training.short_training import LOG_EVERY, fit
from tests.helpers.drawing_workspace import run

PARAMS = build_params(read_yaml(Path(__file__).parents[3] / PARAMS_FILE), "test")
STEPS = LOG_EVERY + 5
STAGE = Stage("descend", Path("out"), (), ())


def descend(weight: nn.Parameter, losses: list[float], broken_at: int | None = None) -> Callable[[Context], Metrics]:
    """The computation of a stage that draws `weight` to 3, notes each loss, and gives NaN at the step `broken_at`."""

    def loss(step: int) -> torch.Tensor:
        value = (weight - 3).square().sum() * (math.nan if step == broken_at else 1)
        losses.append(value.item())
        return value

    def train(context: Context) -> Metrics:
        fit(context, [weight], loss, STEPS, 0.1)
        return {}

    return train


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_history_holds_the_mean_loss_since_the_row_before() -> None:
    losses: list[float] = []
    _, out = run(STAGE, PARAMS, compute=descend(nn.Parameter(torch.zeros(2)), losses))
    with open(out / "history.csv", newline="", encoding="utf-8") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert [step for step, _ in rows] == [LOG_EVERY, STEPS]
    assert rows[0][1] == pytest.approx(sum(losses[:LOG_EVERY]) / LOG_EVERY)
    assert rows[1][1] == pytest.approx(sum(losses[LOG_EVERY:]) / (STEPS - LOG_EVERY))
    assert losses[-1] < losses[0]


def test_loss_that_is_not_finite_stops_before_its_update() -> None:
    stopped, undisturbed = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    with pytest.raises(
        UserError, match=r"the loss is nan and the norm of its gradient nan at step 4: lower descend\.learning_rate"
    ):
        run(STAGE, PARAMS, compute=descend(stopped, [], broken_at=4))
    states: list[torch.Tensor] = []

    class Noting(list[float]):
        """Notes the weight beside every loss."""

        def append(self, value: float) -> None:
            states.append(undisturbed.detach().clone())

    run(STAGE, PARAMS, Path("again"), descend(undisturbed, Noting()))
    assert torch.equal(stopped.detach(), states[4]) and not torch.equal(states[4], states[3])


def test_a_step_that_is_not_finite_is_run_once_more_to_tell_an_error_of_the_machine_apart() -> None:
    weight, bad = nn.Parameter(torch.ones(2)), [2]

    def loss(step: int) -> torch.Tensor:
        value = weight.square().sum()
        return value * torch.nan if step in bad and bad.pop() else value

    with pytest.raises(UserError) as error:
        run(STAGE, PARAMS, compute=lambda context: fit(context, [weight], loss, STEPS, 1e-9))
    said = str(error.value)
    assert "at step 2: not repeatable: run once more from the same state, they are 2 and 2.82843" in said
    assert "learning_rate" not in said and "\n" not in said

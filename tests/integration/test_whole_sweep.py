"""A whole sweep on this machine: shared stages are computed once, and an added value alone."""

import csv
import json

import pytest
import yaml
from mlflow.entities import Run

from flows.building.workspace import merged_params
from flows.sweeps.point_folder import ORDER_FILE, OUTCOME_FILE, outcome
from flows.sweeps.sweep_file import SWEEPS
from tasks.params.params_files import PARAMS_FILE, read_yaml
from tests.helpers.small_workspace import PROJECT
from tests.helpers.whole_pipeline import Clone, new_clone, new_origin


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with few of the smoke profile's stages, for a sweep over what costs little: the report's prompts."""
    few = {"prune.depths": [2], "workflow.baselines": ["grown"]}
    origin = new_origin(tmp_path_factory.mktemp("origin"), merged_params(PROJECT, "smoke", few))
    return new_clone(origin, tmp_path_factory.mktemp("clone"))


def write_grid(clone: Clone, prompts: list[int]) -> None:
    values = {"from": "report", "grid": {"report.grid_prompts": prompts}, "models": ["finetuned-*"]}
    (clone.root / SWEEPS / "cheap.yaml").write_text(yaml.safe_dump(values))


def table(clone: Clone, name: str = "cheap") -> list[dict[str, str]]:
    return list(csv.DictReader((clone.root / f"results/sweeps/{name}/table.csv").read_text().splitlines()))


def parent_of(run: Run) -> str | None:
    return run.data.tags.get("mlflow.parentRunId")


def test_a_sweep_computes_shared_stages_once_and_an_added_value_alone(clone: Clone) -> None:
    write_grid(clone, [1, 2])
    first = clone.python("-m", "flows.sweep", "cheap", "--parallel", "2")
    assert first.returncode == 0, first.stdout + first.stderr
    folders = {folder: (folder / OUTCOME_FILE).read_bytes() for folder in (clone.root / "runs/points").iterdir()}
    ran = {folder: json.loads((folder / ORDER_FILE).read_text())["label"] for folder in folders}
    assert sorted(ran.values()) == ["report.grid_prompts=1", "report.grid_prompts=2", "shared stages, seed 0"]
    for folder, label in ran.items():
        log = (folder / ".sana15/point/log").read_text()
        built = {line.split()[1].rstrip(":") for line in log.splitlines() if ": done in" in line}
        assert (built == {"report"}) == (not label.startswith("shared")), log
    before = table(clone)
    assert [line["report.grid_prompts"] for line in before] == ["1", "2"]
    assert {line["model"] for line in before} == {"finetuned-2"}
    assert len({(line["score"], line["heldout_loss"]) for line in before}) == 1
    assert [line["best"] for line in before].count("True") == 1

    write_grid(clone, [1, 2, 3])
    second = clone.python("-m", "flows.sweep", "cheap", "--parallel", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "2 of 3 points are done, 1 are to run" in second.stderr
    assert all((folder / OUTCOME_FILE).read_bytes() == bytes_ for folder, bytes_ in folders.items())
    (new,) = set((clone.root / "runs/points").iterdir()) - set(folders)
    assert outcome(new).done and len(table(clone)) == 3

    parents = [run.info.run_id for run in clone.mlflow_runs("attributes.run_name = 'sweep cheap'")]
    nested = {run.info.run_id: run for run in clone.mlflow_runs("attributes.run_name LIKE 'cheap %'")}
    points = [run for run in nested.values() if "shared" not in run.info.run_name]
    assert {run.info.run_name for run in points} == {"cheap 1", "cheap 2", "cheap 3"}
    of_points = [run.data.tags["mlflow.parentRunId"] for run in points]
    assert sorted(of_points.count(parent) for parent in parents) == [2, 3]
    # nothing of a point stands beside its sweep, and each report that was made is nested in its point's run
    assert {run.info.run_name for run in clone.mlflow_runs() if not parent_of(run)} == {"sweep cheap"}
    reports = clone.mlflow_runs("attributes.run_name = 'report'")
    assert sorted(nested[parent_of(run)].info.run_name for run in reports) == ["cheap 1", "cheap 2", "cheap 3"]
    assert not (clone.root / "outputs").exists()

    # a point that stops at its model's score has the same row, without a report
    values = {"from": "finetune", "until": ["evaluate@finetuned-2"], "models": ["finetuned-*"]}
    steps = read_yaml(clone.root / PARAMS_FILE)["finetune"]["steps"]
    (clone.root / SWEEPS / "short.yaml").write_text(yaml.safe_dump(values | {"grid": {"finetune.steps": [steps]}}))
    third = clone.python("-m", "flows.sweep", "short")
    assert third.returncode == 0, third.stdout + third.stderr
    (short,) = table(clone, "short")
    shown = ("model", "depth", "parameters", "heldout_loss", "score", "low", "high")
    assert [short[name] for name in shown] == [before[0][name] for name in shown]
    assert not (clone.root / "runs/points" / short["point"] / "results/report.html").exists()

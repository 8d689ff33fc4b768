"""A flow run's run in MLflow ends as it does, and a model's score has one name in all runs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.building.mlflow_runs import open_mlflow_runs
from flows.sweeps.sweep_file import Score, Sweep
from flows.sweeps.sweep_mlflow_runs import open_sweep_run
from flows.sweeps.sweep_table import Row
from tasks.data.scene_vocabulary import lines
from tasks.evaluation.evaluation_summary import CHOOSERS, headline, summarize
from tasks.evaluation.picture_pool import Pool
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.reporting.report_numbers import plain
from tasks.tracking.mlflow_store import connect


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (RuntimeError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_the_run_of_a_flow_and_of_a_stage_that_it_left_end_as_it_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    empty_mlflow_database: Path,
    error: BaseException | None,
    status: str,
) -> None:
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def work() -> None:
        with open_mlflow_runs(tmp_path, "a flow run", {"profile": "smoke"}) as lineage:
            lineage.begin_stage("train")
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    client, experiment = connect()
    ended = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert ended == {"sana15": status, "train": status}


def summary_of_a_pool() -> dict[str, Any]:
    """The summary of a pool with random verdicts: two tasks, prompts seen and unseen, four pictures of each."""
    rng = np.random.default_rng(0)
    chosen = [line for tag in ("single_object", "counting") for line in lines(tag)[:6]]
    prompts = [Prompt(line, seen=number % 2 == 0) for number, line in enumerate(chosen)]
    judged, shuffled = rng.normal(size=(2, len(prompts), 4))
    pictures = np.zeros((len(prompts), 4, 1, 1, 3), np.uint8)
    return summarize(
        Pool(prompts, pictures, rng.random((len(prompts), 4)) < 0.5, judged, shuffled), "geneval", (1, 2, 4), 50, 0
    )


def metrics_of(run_name: str) -> dict[str, float]:
    client, experiment = connect()
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{run_name}'")
    return run.data.metrics


def test_a_models_scores_have_the_names_that_its_stage_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    summary = summary_of_a_pool()
    scored = {key: {name: plain(part) for name, part in summary[key].items()} for key in ("by_seen", *CHOOSERS)}
    scored |= {"scorer": "geneval", "score": summary["score"]}
    with open_mlflow_runs(tmp_path, "a flow run", {}) as mlflow_runs:
        mlflow_runs.record_models([{"name": "grown", "depth": 4, "parameters": 10, "heldout_loss": 0.3, **scored}])
    stage, model = headline(summary), metrics_of("model grown")
    assert {name: model[name] for name in stage} == stage
    assert model["geneval/counting/low"] == summary["score"]["tasks"]["counting"]["low"]
    assert {"geneval/overall", "geneval/seen", "best_of/4"} < stage.keys() and len(set(stage.values())) > 5
    assert model["heldout_loss"] == 0.3


@pytest.mark.parametrize(
    ("score", "names"),
    [("one_picture", {"geneval/grown/overall": 0.5}), ("best_of", {"best_of/grown/1": 0.5, "best_of/grown/4": 0.7})],
)
def test_a_points_scores_have_their_models_name_in_the_second_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Score, names: dict[str, float]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Image.new("RGB", (4, 4)).save(tmp_path / "plot.png")
    sweep = Sweep("mine", None, "train", ({"train.steps": 4},), score=score)
    base = Row("key", {"train.steps": 4}, 0, "done", "", str(tmp_path), "grown", parameters=10, heldout_loss=0.3)
    rows = [replace(base, pictures=int(name[-1]) if name[-1].isdigit() else 1, score=names[name]) for name in names]
    with open_sweep_run(sweep, "a flow run") as record:
        record(rows, tmp_path / "plot.png")
    assert metrics_of("point key") == names | {"parameters/grown": 10, "heldout_loss/grown": 0.3}

"""A flow run's run in MLflow ends as it does, and a model's score has one name in all runs."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from flows.building.mlflow_runs import description, open_mlflow_runs
from flows.building.workspace import copy_name
from flows.sweeps.place_interface import PointState
from flows.sweeps.point_folder import OUTCOME_FILE, Outcome
from flows.sweeps.points import Point
from flows.sweeps.sweep_file import Score, Sweep
from flows.sweeps.sweep_mlflow_runs import open_sweep_run
from tasks.data.scene_vocabulary import lines
from tasks.evaluation.evaluation_summary import CHOOSERS, headline, summarize
from tasks.evaluation.picture_pool import Pool
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.reporting.report_numbers import plain
from tasks.system.files import write_json
from tasks.system.manifest import write_manifest
from tasks.tracking.mlflow_store import connect
from tests.helpers.mlflow_store import runs
from tests.helpers.patience import wait_for


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
    assert ended == {"smoke": status, "train": status}


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


def scored(name: str, score: float) -> dict[str, Any]:
    """A record of a model whose score has a narrow interval."""
    interval = {"overall": score, "low": score - 0.05, "high": score + 0.05}
    return {"name": name, "depth": 4, "parameters": 10, "heldout_loss": 0.3, "scorer": "geneval", "score": interval}


def record_of_a_model(name: str) -> dict[str, Any]:
    summary = summary_of_a_pool()
    scored = {key: {n: plain(part) for n, part in summary[key].items()} for key in ("by_seen", *CHOOSERS)}
    scored |= {"scorer": "geneval", "score": summary["score"]}
    return {"name": name, "depth": 4, "parameters": 10, "heldout_loss": 0.3, **scored}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow_database: Path) -> Path:
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def test_a_models_run_has_few_numbers_under_the_names_that_its_stage_gives_them(workspace: Path) -> None:
    record = record_of_a_model("grown")
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        mlflow_runs.record_models([record | {"seconds_per_picture": 0.5}])
    stage, model = headline(summary_of_a_pool()), metrics_of("model grown")
    assert {name: stage[name] for name in model if name in stage} == {
        name: value for name, value in model.items() if name not in ("heldout_loss", "seconds_per_picture")
    }
    assert {"geneval/overall", "geneval/low", "geneval/high", "geneval/counting", "best_of/4"} < model.keys()
    assert not {name for name in model if name.startswith(("oracle/", "random/", "shuffled/", "by_seen/"))}
    assert model["heldout_loss"] == 0.3 and model["seconds_per_picture"] == 0.5


def test_no_number_of_another_scorer_is_called_geneval(workspace: Path) -> None:
    record = record_of_a_model("grown") | {"scorer": "matching"}
    record |= {"distance": {"value": 2.0, "low": 1.0, "high": 3.0}, "clip_score": 0.25}
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        mlflow_runs.record_models([record])
    model = metrics_of("model grown")
    assert model["matching/overall"] == record["score"]["overall"]
    assert not [name for name in model if "geneval" in name]
    assert (model["distance"], model["clip_score"]) == (2.0, 0.25)


def test_a_models_run_shows_a_sheet_of_its_pictures(workspace: Path) -> None:
    folder = workspace / "outputs" / "evaluation" / "grown"
    folder.mkdir(parents=True)
    pictures = np.zeros((30, 2, 8, 8, 3), np.uint8)
    pictures[:, 0] = np.arange(30)[:, None, None, None] * 8
    np.save(folder / "pictures.npy", pictures)
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        mlflow_runs.record_models([record_of_a_model("grown")])
    client, experiment = connect()
    (run,) = client.search_runs([experiment], "attributes.run_name = 'model grown'")
    (png,) = [one.path for one in client.list_artifacts(run.info.run_id, "images") if one.path.endswith(".png")]
    sheet = Image.open(client.download_artifacts(run.info.run_id, png, str(workspace)))
    shown = [sheet.getpixel((column * 68 + 32, row * 68 + 32))[0] // 8 for row in range(2) for column in range(6)]
    assert shown == [number * 30 // 12 for number in range(12)]


def test_a_run_is_named_by_its_profile_and_overrides_and_says_where_its_report_and_flow_run_are(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4321/api")
    overrides = {"finetune.steps": 3}
    for given, name in (
        ({}, "default"),
        ({"profile": "smoke", "overrides": overrides}, copy_name("smoke", overrides)),
    ):
        with open_mlflow_runs(workspace, "id-of-the-flow-run", given):
            pass
        client, experiment = connect()
        (run,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
        note = run.data.tags["mlflow.note.content"]
        assert "[id-of-the-flow-run](http://127.0.0.1:4321/runs/flow-run/id-of-the-flow-run)" in note
        assert str(workspace.resolve() / "results/report.html") in note


def test_a_run_without_a_server_says_where_prefect_will_show_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_PORT", "4322")
    text = description(workspace, "id-of-the-flow-run", None)
    assert "(http://127.0.0.1:4322/runs/flow-run/id-of-the-flow-run)" in text and "`make up` starts one" in text


def test_the_parents_description_has_the_best_model_and_a_table_of_models_above_all_else(workspace: Path) -> None:
    models = [scored("small", 0.2), scored("grown", 0.5), scored("finetuned-6", 0.4)]
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        mlflow_runs.describe_models({"models": models, "controls": {"noise": scored("noise", 0.1)["score"]}})
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    link, _, best, *lines = run.data.tags["mlflow.note.content"].splitlines()
    assert link.endswith(f"](#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=models)")
    assert best.startswith("GenEval is highest for grown.")
    assert [line.split(" | ")[0] for line in lines if line.startswith("|")] == [
        "| model",
        "| ---",
        *(f"| {model['name']}" for model in models),
    ]


def test_a_models_run_says_in_a_sentence_what_the_model_is_and_how_well_it_does(workspace: Path) -> None:
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        mlflow_runs.record_models([scored("finetuned-6", 0.4) | {"depth": 6, "seconds_per_picture": 0.0944}])
    (run,) = runs("model finetuned-6")
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("The grown model cut to 6 blocks and fine-tuned: GenEval 0.400 [0.350, 0.450], ")
    assert "seconds a picture 0.0944" in note


def test_stages_that_were_up_to_date_have_no_run_and_are_counted_in_the_parents_description(workspace: Path) -> None:
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        for stage in ("shard", "encode"):
            mlflow_runs.record_cached_stage(stage, f"digest of {stage}")
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    assert "not run again (2): shard, encode." in run.data.tags["mlflow.note.content"]


def test_the_report_is_an_artifact_of_the_parent_run_with_an_address_in_mlflows_ui(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "report.html").write_text("<p>the report</p>")
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        mlflow_runs.record_report(workspace / "report.html", workspace / "missing.png")
        wait_for(lambda: mlflow_runs.parent.sent()[1] is not None, "MLflow")
        assert mlflow_runs.address("report.html") is None  # no server shows it
        monkeypatch.setattr("flows.building.mlflow_runs.mlflow_server", lambda: "http://127.0.0.1:5000")
        address = mlflow_runs.address("report.html")
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["report.html"]
    page = f"/#/experiments/{experiment}/runs/{run.info.run_id}/artifacts/report.html?workflowType=machine_learning"
    assert address == f"http://127.0.0.1:5000{page}"


def test_the_runs_of_a_point_are_nested_in_the_run_that_its_sweep_has_opened(workspace: Path) -> None:
    Image.new("RGB", (4, 4)).save(workspace / "plot.png")
    given = {"point": {"key": "key", "name": "mine 4", "sweep": "mine", "setting": {"train.steps": 4}}}
    entry = {"cmd": "python -m tasks.train", "outs": [{"path": "outputs/grown", "md5": "5" * 32, "size": 9}]}
    point = Point("key", "train.steps=4", workspace, {}, {"train.steps": 4}, 0, sweep="mine", name="mine 4")
    with open_sweep_run(Sweep("mine", None, "train", ({"train.steps": 4},)), "a flow run") as sweep_runs:
        sweep_runs.note(point, PointState("running"))
        wait_for(lambda: runs("mine 4") != [], "the point's run")  # a point needs longer than this to begin a stage
        with open_mlflow_runs(workspace, "another flow run", given) as mlflow_runs:
            mlflow_runs.begin_stage("train")
            mlflow_runs.finish_stage("train", entry)
        sweep_runs.note(point, PointState("failed", "no memory"))
        sweep_runs.finish([point], {"key": PointState("failed", "no memory")}, workspace / "plot.png")
    client, experiment = connect()
    by_name = {run.info.run_name: run for run in client.search_runs([experiment])}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in by_name.items()}
    ids = {name: run.info.run_id for name, run in by_name.items()}
    assert parents == {"sweep mine": None, "mine 4": ids["sweep mine"], "train": ids["mine 4"]}
    assert json.loads(by_name["train"].data.tags["dvc.outs"]) == {"outputs/grown": "5" * 32}
    assert json.loads(Path(client.download_artifacts(ids["train"], "dvc.lock.json")).read_text()) == entry
    assert by_name["mine 4"].info.status == "FAILED"
    assert by_name["mine 4"].data.tags["sana15.reason"] == "no memory"


@pytest.mark.parametrize(
    ("score", "names"),
    [("one_picture", {"geneval/grown/overall": 0.5}), ("best_of", {"best_of/grown/1": 0.5, "best_of/grown/4": 0.7})],
)
def test_a_points_scores_have_their_models_name_in_the_second_place(
    workspace: Path, score: Score, names: dict[str, float]
) -> None:
    Image.new("RGB", (4, 4)).save(workspace / "plot.png")
    interval = {"low": 0.0, "high": 1.0}
    model = {"name": "grown", "depth": 4, "parameters": 10, "heldout_loss": 0.3, "scorer": "geneval"}
    model |= {"score": {"overall": 0.5, **interval}}
    model |= {"best_of": {"1": {"overall": 0.5, **interval}, "4": {"overall": 0.7, **interval}}}
    write_json(workspace / OUTCOME_FILE, asdict(Outcome("", 1.0, [model])))
    point = Point("key", "train.steps=4", workspace, {}, {"train.steps": 4}, 0, sweep="mine", name="mine 4")
    with open_sweep_run(Sweep("mine", None, "train", ({"train.steps": 4},), score=score), "a flow run") as sweep_runs:
        sweep_runs.finish([point], {"key": PointState("done")}, workspace / "plot.png")
    assert metrics_of("mine 4") == names | {"parameters/grown": 10, "heldout_loss/grown": 0.3}


def test_a_registered_version_has_the_models_scores_but_not_those_of_each_task(workspace: Path) -> None:
    folder = workspace / "outputs" / "grown"
    folder.mkdir(parents=True)
    save_file({"weight": np.zeros((2, 5), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"depth": 4}')
    write_manifest(folder)
    with open_mlflow_runs(workspace, "a flow run", {}) as mlflow_runs:
        mlflow_runs.record_models([record_of_a_model("grown")])
    client, _ = connect()
    version = client.get_model_version_by_alias("sana15-default", "grown")
    assert version.tags["geneval/overall"] == f"{summary_of_a_pool()['score']['overall']:.4g}"
    assert {"geneval/low", "geneval/high", "best_of/4", "heldout_loss"} < version.tags.keys()
    assert "geneval/counting" not in version.tags

"""Reports reach a real MLflow once each, whatever happens on the way."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tasks.params.params_files import load_params
from tasks.runtime.stage_run import run_stage
from tasks.stages import Stage
from tasks.system.errors import UserError
from tasks.system.manifest import MANIFEST, sha256_file, write_manifest
from tasks.system.paths import main_project
from tasks.tracking import model_registry
from tasks.tracking.mlflow_sender import CACHED_TAG, DIGEST_TAG, NOTE_TAG, Sender, send, send_backlog
from tasks.tracking.mlflow_store import connect, tracking_uri
from tasks.tracking.report_spool import POINT_TAG, SPOOLS, join_spool, open_spool
from tasks.tracking.tracker import SPOOL_VARIABLE, Tracker, open_tracker
from tests.helpers.mlflow_store import history, runs
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT, write_params


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow_database: Path) -> Path:
    """A workspace of its own with an MLflow database."""
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(SPOOL_VARIABLE, raising=False)
    return tmp_path


def complain(what: str, error: Exception) -> None:
    raise AssertionError(what) from error


def checkpoint(name: str, value: float = 0.0) -> Path:
    folder = Path("outputs") / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full((3, 4), value, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"depth": 4}')
    write_manifest(folder)
    return folder


def test_what_a_stage_reports_is_in_mlflow_when_it_ends(store: Path) -> None:
    Image.new("RGB", (4, 4)).save("grid.png")
    data = checkpoint("encoded")
    with open_tracker("pretrain") as tracker:
        tracker.log_params({"pretrain": {"steps": 3}, "compute.seed": 0})
        for step in range(250):
            tracker.log_metrics({"loss": 1 / (step + 1)}, step)
        tracker.log_image("samples", Path("grid.png"), 7)
        tracker.log_inputs([data])
        tracker.log_output(data)
    (run,) = runs("pretrain")
    client, _ = connect()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"pretrain.steps": "3", "compute.seed": "0"}
    assert history(run, "loss") == [(step, 1 / (step + 1)) for step in range(250)]
    images = {Path(item.path).suffix for item in client.list_artifacts(run.info.run_id, "images")}
    assert images == {".png", ".webp"}
    (dataset,) = run.inputs.dataset_inputs
    assert run.data.tags[DIGEST_TAG].startswith(dataset.dataset.digest)
    assert not list(SPOOLS.iterdir())


def test_the_inputs_of_a_stage_are_datasets_of_its_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(store, {"compute.threads": 1, "compute.device": "cpu"})
    folders = [checkpoint("encoded"), checkpoint("grown_init", value=1.0)]
    monkeypatch.setattr("tasks.train.run", lambda _context: {})
    run_stage(Stage("train", Path("outputs/other"), tuple(folders), ("compute.seed",)), load_params())
    (run,) = runs("train")
    sources = {used.dataset.name: json.loads(used.dataset.source) for used in run.inputs.dataset_inputs}
    assert sources == {
        str(folder): {"path": str(folder.resolve()), "manifest_sha256": sha256_file(folder / MANIFEST)}
        for folder in folders
    }


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no"), "FAILED"), (SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_stage_that_does_not_finish_says_how_it_ended(store: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), open_tracker("train"):
        raise error
    assert [run.info.status for run in runs("train")] == [status]


def test_a_process_that_is_killed_loses_no_row_and_its_run_is_ended_by_the_next(store: Path) -> None:
    code = (
        "import os\nfrom tasks.tracking.tracker import open_tracker\nwith open_tracker('train') as tracker:\n"
        "    tracker.log_metrics({'loss': 0.5}, 3)\n    os._exit(9)"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PROJECT)}, timeout=PATIENCE_SECONDS
    )
    with open_tracker("grow"):
        pass
    (run,) = runs("train")
    assert run.info.status == "KILLED"
    assert history(run, "loss") == [(3, 0.5)]


def test_an_attempt_that_repeats_steps_does_not_double_them(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sender(SPOOLS) as sender:
        spool = open_spool(SPOOLS, "train", {})
        sender.add(spool)
        monkeypatch.setenv(SPOOL_VARIABLE, str(spool.path))
        for steps in (range(0, 6), range(4, 9)):
            with open_tracker("train") as tracker:
                for step in steps:
                    tracker.log_metrics({"loss": float(step)}, step)
            time.sleep(0.01)
        spool.append("end", status="FINISHED")
    (run,) = runs("train")
    assert history(run, "loss") == [(step, float(step)) for step in range(9)]


def test_rows_that_are_sent_again_after_a_crash_are_not_doubled(store: Path) -> None:
    Image.new("RGB", (4, 4)).save("grid.png")
    spool = open_spool(SPOOLS, "pretrain", {})
    tracker = Tracker(spool)
    tracker.log_params({"steps": 3})
    tracker.log_metrics({"loss": 0.5}, 1)
    tracker.log_image("samples", Path("grid.png"), 1)
    tracker.log_output(checkpoint("small"))
    send(spool)
    (run,) = runs("pretrain")
    spool.mark_sent(0, run.info.run_id)  # the crash came before the mark
    spool.append("end", status="FINISHED")
    rows = [row["kind"] for row, _ in spool.rows()]
    assert rows == ["run", "params", "metrics", "image", "output", "end"]
    assert send(spool)
    client, _ = connect()
    (run,) = runs("pretrain")
    assert history(run, "loss") == [(1, 0.5)]
    assert len(client.list_artifacts(run.info.run_id, "images")) == 2
    assert len(client.search_model_versions("name = 'sana15-default'")) == 1


def test_the_last_send_goes_on_for_as_long_as_runs_arrive(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect()
    monkeypatch.setattr("tasks.tracking.mlflow_sender.LAST_SEND_SECONDS", 0.5)
    with Sender(SPOOLS) as sender:
        for _ in range(60):
            spool = open_spool(SPOOLS, "one of many", tags={})
            spool.append("end", status="FINISHED")
            sender.add(spool)
        began = time.monotonic()
    assert time.monotonic() - began > 0.5  # or there would be nothing to see
    assert len(runs("one of many")) == 60 and not list(SPOOLS.glob("*.jsonl"))


def test_a_run_whose_parent_was_created_by_another_process_is_its_child(store: Path) -> None:
    parent = open_spool(SPOOLS, "sana15", {})
    child = open_spool(SPOOLS, "train", {}, parent.header["key"])
    parent.close()
    child.close()
    send_backlog(SPOOLS, complain)
    assert runs("train")[0].data.tags["mlflow.parentRunId"] == runs("sana15")[0].info.run_id


def test_a_run_whose_parent_went_to_another_store_is_sent_without_it(store: Path) -> None:
    open_spool(SPOOLS, "train", {}, "key of a parent that is nowhere").close()
    send_backlog(SPOOLS, complain)
    (run,) = runs("train")
    assert "mlflow.parentRunId" not in run.data.tags
    assert not list(SPOOLS.iterdir())


def test_a_run_waits_for_a_parent_that_has_not_been_sent(store: Path) -> None:
    parent = open_spool(SPOOLS, "sana15", {})
    open_spool(SPOOLS, "train", {}, parent.header["key"]).close()
    told: list[str] = []
    send_backlog(SPOOLS, lambda what, error: told.append(f"{what}: {error}"))  # the parent's process lives
    assert len(told) == 1 and "the parent of train has not been sent yet" in told[0]
    assert not runs("train")
    send(parent)
    send_backlog(SPOOLS, complain)
    assert runs("train")[0].data.tags["mlflow.parentRunId"] == runs("sana15")[0].info.run_id


def test_a_spool_that_cannot_be_read_is_named_and_does_not_hold_up_the_others(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = open_spool(SPOOLS, "broken", {})
    broken.path.write_text("no JSON\n")
    broken.close()
    open_spool(SPOOLS, "train", {}).close()
    with Sender(SPOOLS) as sender:
        alive = open_spool(SPOOLS, "alive", {})
        alive.path.write_text("no JSON\n")
        grow = open_spool(SPOOLS, "grow", {})
        for spool in (alive, grow):
            sender.add(spool)
        grow.append("end", status="FINISHED")
    assert len(runs("train")) == len(runs("grow")) == 1
    assert sorted(path.name for path in SPOOLS.iterdir()) == [broken.path.name, alive.path.name]
    assert sorted(line.split()[0] for line in capsys.readouterr().err.splitlines()) == [
        broken.path.name,
        alive.path.name,
    ]


def test_a_run_names_and_links_the_runs_that_made_what_was_up_to_date(store: Path) -> None:
    with open_tracker("pretrain") as tracker:
        tracker.log_output(checkpoint("small"))
    (maker,) = runs("pretrain")
    spool = open_spool(SPOOLS, "default", {})
    cached = {"pretrain": maker.data.tags[DIGEST_TAG], "train": "the digest of an output that no run made"}
    spool.append("note", text="The text.", cached=cached)
    send(spool)
    (run,) = runs("default")
    _, experiment = connect()
    link = f"[pretrain](#/experiments/{experiment}/runs/{maker.info.run_id}?workflowType=machine_learning)"
    assert run.data.tags[NOTE_TAG] == f"The text.\n\nUp to date, so not run again (2): {link}, train."
    assert json.loads(run.data.tags[CACHED_TAG]) == {"pretrain": maker.info.run_id, "train": None}
    assert len(runs("pretrain")) == 1 and not runs("train")


def test_a_stage_of_a_sweeps_point_is_nested_in_the_newest_run_of_that_point(store: Path) -> None:
    point = open_spool(SPOOLS, "prune-depth [3]", {POINT_TAG: "key of the point"})
    open_spool(SPOOLS, "finetune@3", {}, "key of the point").close()
    told: list[str] = []
    send_backlog(SPOOLS, lambda what, error: told.append(f"{what}: {error}"))  # the sweep has not sent its run yet
    assert len(told) == 1 and not runs("finetune@3")
    send(point)
    send_backlog(SPOOLS, complain)
    (nested,) = runs("finetune@3")
    assert nested.data.tags["mlflow.parentRunId"] == runs("prune-depth [3]")[0].info.run_id


def test_an_artifact_is_what_the_file_was_when_it_was_reported(store: Path) -> None:
    report = Path("report.html")
    report.write_text("first")
    spool = open_spool(SPOOLS, "default", {})
    spool.append_artifact(report)
    report.write_text("second")
    send(spool)
    client, _ = connect()
    kept = Path(client.download_artifacts(runs("default")[0].info.run_id, "report.html", str(store / "kept")))
    assert kept.read_text() == "first"


def test_a_row_that_mlflow_refuses_does_not_hold_up_the_rest(store: Path) -> None:
    with open_tracker("train") as tracker:
        tracker.log_params({"steps": 3})
        tracker.log_params({"steps": 4})
        tracker.log_metrics({"loss": 0.5}, 1)
    assert [history(run, "loss") for run in runs("train")] == [[(1, 0.5)]]


def test_a_model_is_registered_by_reference_and_found_by_its_alias(store: Path) -> None:
    folder = checkpoint("finetuned-8")
    for _ in range(2):
        with open_tracker("finetune@8") as tracker:
            tracker.log_output(folder)
    client, _ = connect()
    (version,) = client.search_model_versions("name = 'sana15-default'")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert (model.params["depth"], model.params["parameters"]) == ("4", "12")
    client.set_registered_model_alias("sana15-default", "champion", version.version)
    assert model_registry.resolve_model("finetuned-8") == folder
    assert model_registry.resolve_model(folder) == folder
    assert model_registry.resolve_model("champion") == folder.resolve()
    checkpoint("finetuned-8", value=1.0)
    with pytest.raises(UserError, match="other weights than were registered"):
        model_registry.resolve_model("champion")


def test_new_weights_under_a_name_take_over_its_alias(store: Path) -> None:
    for value in (0.0, 1.0):
        with open_tracker("pretrain") as tracker:
            tracker.log_output(checkpoint("small", value))
    client, _ = connect()
    assert client.get_registered_model("sana15-default").aliases == {"small": 2}


def test_every_experiment_has_its_registered_model_and_points_share_one_without_aliases(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces = {
        "sana15-default": [store],
        "sana15-smoke": [store / "runs" / "smoke"],
        "sana15-points": [store / "runs" / "points" / name for name in ("0a", "1b")],
        "sana15-exps": [store / ".dvc" / "tmp" / "exps" / "tmp1"],
    }
    for workspace in [folder for folders in workspaces.values() for folder in folders]:
        workspace.mkdir(parents=True, exist_ok=True)
        (workspace / "dvc.yaml").touch()
        (workspace / "params.yaml").touch()
        monkeypatch.chdir(workspace)
        with open_tracker("pretrain") as tracker:
            tracker.log_output(checkpoint("small"))
    client, _ = connect()
    versions = client.search_model_versions()
    for name, folders in workspaces.items():
        paths = {version.tags["path"] for version in versions if version.name == name}
        assert paths == {str(folder.resolve() / "outputs/small") for folder in folders}
        own = client.get_registered_model(name).aliases
        assert own == ({"small": 1} if name in ("sana15-default", "sana15-smoke") else {})
    monkeypatch.chdir(store / "runs" / "smoke")
    assert model_registry.resolve_model("small") == Path("outputs/small")
    monkeypatch.chdir(store / "runs")
    assert model_registry.resolve_model("small") == store.resolve() / "outputs/small"
    assert model_registry.resolve_model("sana15-smoke@small") == store.resolve() / "runs/smoke/outputs/small"
    with pytest.raises(UserError, match="no folder, output or registry alias"):
        model_registry.resolve_model("sana15-points@small")


def test_a_version_gets_scores_as_tags_and_is_registered_once(store: Path) -> None:
    folder = checkpoint("small")
    with open_tracker("pretrain") as tracker:
        tracker.log_output(folder)
    spool = open_spool(SPOOLS, "model small", {})
    facts, digest = model_registry.describe(folder), sha256_file(folder / MANIFEST)
    scores = {"geneval/overall": "0.5", "best_of/4": "0.7"}
    spool.append("version", folder=str(folder.resolve()), digest=digest, facts=facts, scores=scores)
    send(spool)
    client, _ = connect()
    (version,) = client.search_model_versions("name = 'sana15-default'")
    assert {key: version.tags[key] for key in scores} == scores
    assert version.run_id == runs("pretrain")[0].info.run_id


def test_an_unknown_model_is_answered_with_the_known_ones(store: Path) -> None:
    checkpoint("grown")
    with pytest.raises(UserError, match=r"model 'grwn' is no folder.*has grown"):
        model_registry.resolve_model("grwn")


def test_copies_of_the_project_share_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = tmp_path / "runs" / "smoke"
    copy.mkdir(parents=True)
    for folder in (tmp_path, copy):
        (folder / "dvc.yaml").touch()
        (folder / "params.yaml").touch()
    monkeypatch.chdir(copy)
    assert main_project(copy) == tmp_path.resolve()
    assert tracking_uri() == f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}"


def test_a_project_within_another_project_of_dvc_keeps_its_own_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = tmp_path / "experiments" / "sana15"
    copy, trial = own / "runs" / "smoke", own / ".dvc" / "tmp" / "exps" / "tmp1"
    for folder in (tmp_path, own, copy, trial):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dvc.yaml").touch()
        (folder / "params.yaml").touch()
    (own / "outputs").mkdir()
    for folder in (own, copy, trial, own / "outputs"):
        assert main_project(folder) == own.resolve()
    monkeypatch.chdir(copy)
    assert tracking_uri() == f"sqlite:///{own.resolve() / 'mlflow.db'}"


def test_a_question_mark_in_the_project_s_path_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "why?").mkdir()
    monkeypatch.chdir(tmp_path / "why?")
    with pytest.raises(UserError, match=r"why\? has a question mark in its path.*rename it"):
        tracking_uri()


def test_joining_a_spool_leaves_its_lock_with_the_opener(store: Path) -> None:
    spool = open_spool(SPOOLS, "train", {})
    joined = join_spool(spool.path)
    joined.append("metrics", values={"loss": 1.0}, step=0)
    joined.close()
    send_backlog(SPOOLS, complain)
    assert not spool.ended and spool.sent() == (0, None)

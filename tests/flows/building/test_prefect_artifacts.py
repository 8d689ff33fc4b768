"""A flow builds its stages also where Prefect cannot show how far it is. Its artifacts are for people anywhere."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.building import prefect_artifacts, stage_retry
from flows.building.prefect_artifacts import StageProgress, publish_report
from flows.building.stage_builder import BuiltStage


def test_a_server_that_takes_no_artifact_fails_no_stage_that_is_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def times_out(*_arguments: Any, **_values: Any) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(prefect_artifacts, "create_progress_artifact", lambda *_arguments, **_values: "id")
    monkeypatch.setattr(prefect_artifacts, "update_progress_artifact", times_out)
    monkeypatch.setattr(stage_retry, "get_run_logger", lambda: logging.getLogger("test"))
    built = BuiltStage("grow", {"outputs/grown_init": "digest"}, False, 1.0)
    params = SimpleNamespace(workflow=SimpleNamespace(retries=0))
    build: Any = SimpleNamespace(build=lambda _name, _log: built, params=params)
    done = stage_retry.stage_task(build, "grow", StageProgress(1), ["grow"]).fn()
    assert done["outputs"] == built.outputs
    assert "no answer" in caplog.text


def test_a_line_of_a_stage_tells_its_name_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def building(name: str, log: Any) -> BuiltStage:
        for line in ("finetune@6: 10/60 5.0/s", "blocks: 6", "a note on finetune@6: it is short"):
            log(line)
        return BuiltStage(name, {}, False, 1.0)

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(stage_retry, "get_run_logger", lambda: logging.getLogger("test"))
    build: Any = SimpleNamespace(build=building, params=SimpleNamespace(workflow=SimpleNamespace(retries=0)))
    progress: Any = SimpleNamespace(advance=lambda: None)
    stage_retry.stage_task(build, "finetune@6", progress, ["finetune@6"]).fn()
    told = [record.getMessage() for record in caplog.records if " | " in record.getMessage()]
    after = ["10/60 5.0/s", "blocks: 6", "a note on finetune@6: it is short"]
    assert told == [f"finetune@6 | {line}" for line in after]


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:5000/#/experiments/1/runs/2/artifacts/report.html"])
def test_the_report_is_linked_through_mlflow_and_its_path_is_text(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    published: list[str] = []
    monkeypatch.setattr(prefect_artifacts, "create_markdown_artifact", lambda text, **_values: published.append(text))
    publish_report(Path("/a/results/report.html"), address)
    (text,) = published
    assert text.splitlines()[-1] == "`/a/results/report.html`" and "file:" not in text
    assert (f"]({address})" in text) == (address is not None)

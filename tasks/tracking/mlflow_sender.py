"""Sends spools to MLflow, each row once.

Every call names the run by its id, since MLflow's active run belongs to one thread. Every row is sent with its own
time, so that a row that is sent again after a crash is the same row to MLflow.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.system.errors import UserError
from tasks.system.paths import main_project
from tasks.tracking import model_registry
from tasks.tracking.mlflow_store import connect, tracking_uri
from tasks.tracking.mlflow_views import models_path, run_path
from tasks.tracking.report_spool import POINT_TAG, SPOOLS, Row, Spool, claim_spools, find_spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

SEND_EVERY_SECONDS = 2.0
WAIT_AFTER_FAILURE_SECONDS = 15.0
ROWS_PER_CALL = 100
LAST_SEND_SECONDS = 30.0
"""The last send is given up when no run has been sent completely for so long."""
KEY_TAG = "sana15.key"
PARENT_TAG = "mlflow.parentRunId"
OUTPUT_TAG = "sana15.output"
DIGEST_TAG = "sana15.output_sha256"
CACHED_TAG = "sana15.cached"
"""On the run of a flow: which run made the output of each stage that was up to date, as JSON by the stage's name."""
NOTE_TAG = "mlflow.note.content"
"""MLflow's UI shows this tag as the run's description, in markdown."""
PASSING_ERRORS = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"}
"""MLflow's error codes of a store that may answer later. With any other code it refuses the row itself."""


class Sender:
    """A thread that sends spools while a `with` block lasts. At its end it sends what is left and closes the spools.

    It begins with the spools that dead processes left in `folder`. It never raises: a spool that cannot be sent stays
    on disk for the next sender, and one line says so.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spools: list[Spool] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
        self._told: set[str] = set()

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        left = None
        while self._thread.is_alive() and left != len(self._spools):
            left = len(self._spools)
            self._thread.join(LAST_SEND_SECONDS)
        for spool in self._spools:
            spool.close()

    def add(self, spool: Spool) -> None:
        """Send a spool from now on, and close it when its run has ended and all of it is sent."""
        self._spools.append(spool)

    def _work(self) -> None:
        backlog, wait, finished = True, 0.0, False
        while not finished:
            finished = self._done.wait(wait)
            try:
                connect()
                wait = SEND_EVERY_SECONDS
                if backlog:
                    send_backlog(self._folder, self._tell)
                    backlog = False
                for spool in list(self._spools):
                    self._send(spool)
            except Exception as error:
                wait = WAIT_AFTER_FAILURE_SECONDS
                self._tell(f"{tracking_uri()} cannot be reached", error)

    def _send(self, spool: Spool) -> None:
        try:
            if send(spool):
                self._spools.remove(spool)
                spool.close()
        except Exception as error:
            self._tell(f"{spool.path.name} cannot be sent", error)

    def _tell(self, what: str, error: Exception) -> None:
        if what not in self._told:
            self._told.add(what)
            reason = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, UserError):
                reason = reason[:120]
            print(f"{what} ({reason}): reports wait in {self._folder} for the next run", file=sys.stderr, flush=True)


def send_backlog(folder: Path, tell: Callable[[str, Exception], None]) -> None:
    """Send the spools in `folder` whose processes are gone. A run that had not ended by then was killed.

    A spool that cannot be sent is passed to `tell` with the error, and the others are sent all the same.
    """
    for spool in claim_spools(folder):
        try:
            if not spool.ended:
                spool.append("end", status="KILLED")
            send(spool)
        except Exception as error:
            tell(f"{spool.path.name} cannot be sent", error)


def send(spool: Spool) -> bool:
    """Send the rows of `spool` that have not been sent. If its run has ended, delete it; returns whether it did.

    Raises MLflow's exception if the store cannot be reached. The rows that were sent before stay marked as sent.
    """
    offset, run_id = spool.sent()
    client, experiment = connect()
    if run_id is None:
        header, offset = next(spool.rows())
        run_id = _run_of(client, experiment, header, spool.path.parent)
        spool.mark_sent(offset, run_id)
    rows, ended = spool.rows(offset), spool.ended
    while batch := list(islice(rows, ROWS_PER_CALL)):
        for kind, pairs in groupby(batch, key=lambda pair: pair[0]["kind"]):
            group = list(pairs)
            _send_rows(client, experiment, run_id, spool, kind, [row for row, _ in group])
            spool.mark_sent(group[-1][1], run_id)
    if ended:
        spool.delete()
    return ended


def _run_of(client: "MlflowClient", experiment: str, header: Row, folder: Path) -> str:
    """The id of a spool's MLflow run, which is created unless an earlier try has created it.

    Raises LookupError while the spool of its parent waits to be sent, here or in the main project. A parent that is
    neither in this store nor in a spool was sent to another store; the run then has no parent.
    """
    if (run_id := _find_run(client, experiment, KEY_TAG, header["key"])) is not None:
        return run_id
    tags = header["tags"] | {KEY_TAG: header["key"]}
    if header["parent"] is not None:
        found = (_find_run(client, experiment, tag, header["parent"]) for tag in (KEY_TAG, POINT_TAG))
        parent = next(filter(None, found), None)
        if parent is None and any(find_spool(spools, header["parent"]) for spools in (folder, _main_spools(folder))):
            raise LookupError(f"the parent of {header['name']} has not been sent yet")
        tags |= {PARENT_TAG: parent} if parent else {}
    run = client.create_run(experiment, start_time=header["time"], tags=tags, run_name=header["name"])
    return run.info.run_id


def _main_spools(folder: Path) -> Path:
    """The folder of spools of the main project, where a sweep opens the runs that its points report to."""
    return main_project(folder.parents[len(SPOOLS.parts) - 1]) / SPOOLS


def _find_run(client: "MlflowClient", experiment: str, tag: str, value: str) -> str | None:
    """The newest run with this tag."""
    runs = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", max_results=1)
    return runs[0].info.run_id if runs else None


def _send_rows(client: "MlflowClient", experiment: str, run_id: str, spool: Spool, kind: str, rows: list[Row]) -> None:
    """Send rows of one kind. Those that MLflow refuses for good are dropped with a line, or they would block others."""
    from mlflow.exceptions import MlflowException

    try:
        if kind == "metrics":
            client.log_batch(run_id, metrics=_metrics(rows))
            return
        for row in rows:
            _send_row(client, experiment, run_id, spool, kind, row)
    except MlflowException as error:
        if error.error_code in PASSING_ERRORS:
            raise
        print(f"MLflow refused {kind} of {spool.path.stem}: {error.message}", file=sys.stderr, flush=True)


def _send_row(client: "MlflowClient", experiment: str, run_id: str, spool: Spool, kind: str, row: Row) -> None:
    from mlflow.entities import Param, RunTag

    if kind == "params":
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in row["values"].items()])
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in row["values"].items()])
    elif kind == "image":
        _send_image(client, run_id, spool, row)
    elif kind == "inputs":
        client.log_inputs(run_id, datasets=[_dataset(**folder) for folder in row["folders"]])
    elif kind == "output":
        client.set_tag(run_id, OUTPUT_TAG, row["folder"])
        client.set_tag(run_id, DIGEST_TAG, row["digest"])
        if row["facts"] is not None:
            model_registry.register(client, experiment, run_id, Path(row["folder"]), row["digest"], row["facts"])
    elif kind == "artifact":
        client.log_artifact(run_id, str(spool.images / row["file"]))
    elif kind == "version":
        model_registry.register(
            client, experiment, run_id, Path(row["folder"]), row["digest"], row["facts"], row["scores"]
        )
    elif kind == "note":
        makers = {stage: _find_run(client, experiment, DIGEST_TAG, one) for stage, one in row["cached"].items()}
        # a spool that an older version of the project has left lacks `models`
        models = _models_note(experiment, row.get("models", ""))
        client.set_tag(run_id, NOTE_TAG, models + row["text"] + _cached_stages_note(experiment, makers))
        if makers:
            client.set_tag(run_id, CACHED_TAG, json.dumps(makers))
    elif kind == "end":
        client.set_terminated(run_id, status=row["status"], end_time=row["time"])


def _metrics(rows: list[Row]) -> list["Metric"]:
    from mlflow.entities import Metric

    return [Metric(key, value, row["time"], row["step"]) for row in rows for key, value in row["values"].items()]


def _models_note(experiment: str, models: str) -> str:
    """The markdown on a run's models, below a link to the table of all models. Empty if the run has none yet.

    MLflow's UI shows a few lines and hides the others behind a click, so the link comes first.
    """
    link = f"[All models with their scores]({models_path(experiment).lstrip('/')})"
    return f"{link}\n\n{models}\n\n" if models else ""


def _cached_stages_note(experiment: str, makers: Mapping[str, str | None]) -> str:
    """A sentence on the stages that were up to date, each with a link to the run that made its output, if known."""
    if not makers:
        return ""
    links = [
        stage if run_id is None else f"[{stage}]({run_path(experiment, run_id).lstrip('/')})"
        for stage, run_id in makers.items()
    ]
    return f"\n\nUp to date, so not run again ({len(links)}): {', '.join(links)}."


def _send_image(client: "MlflowClient", run_id: str, spool: Spool, row: Row) -> None:
    """Log a picture, unless an earlier try did. MLflow adds a random name to the key, step and time, which tell."""
    from PIL import Image

    stem = f"images/{row['key'].replace('/', '~')}+step+{row['step']}+timestamp+{row['time']}+"
    if any(item.path.startswith(stem) for item in client.list_artifacts(run_id, "images")):
        return
    with Image.open(spool.images / row["file"]) as image:
        client.log_image(run_id, image, key=row["key"], step=row["step"], timestamp=row["time"])


def _dataset(name: str, folder: str, digest: str) -> "DatasetInput":
    """A folder as an MLflow dataset. MLflow's digest has room for half a sha256; the dataset's source has all of it."""
    from mlflow.entities import Dataset, DatasetInput

    source = json.dumps({"path": folder, "manifest_sha256": digest})
    return DatasetInput(Dataset(name, digest[:32], "local", source), tags=[])

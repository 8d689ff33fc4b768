"""The tracker, to which a stage reports its params, metrics, pictures, inputs and output.

A report is a line in a spool on disk (`tasks.tracking.report_spool`), so it costs microseconds and outlives the
process. A background thread, in this process or in the flow's, sends it to MLflow (`tasks.tracking.mlflow_sender`). An
MLflow server that is down or slow never stops or slows a stage, and the next run sends what it missed.
"""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.system.git_commit import git_commit
from tasks.system.manifest import MANIFEST, sha256_file
from tasks.tracking import model_registry
from tasks.tracking.mlflow_sender import Sender
from tasks.tracking.report_spool import SPOOLS, Spool, join_spool, open_spool, status_after

SPOOL_VARIABLE = "SANA15_SPOOL"
COMMIT_TAG = "mlflow.source.git.commit"


class Tracker:
    """Takes the reports of one stage in one run; `open_tracker` makes it."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        rows = [row for row, _ in spool.rows()]
        self._reported = {(key, row["step"]) for row in rows if row["kind"] == "metrics" for key in row["values"]}
        self._shown = {(row["key"], row["step"]) for row in rows if row["kind"] == "image"}

    @property
    def path(self) -> Path:
        """The file of the spool, which another process may join."""
        return self._spool.path

    def log_params(self, params: dict[str, Any]) -> None:
        """Log nested params under dotted names (`grow.depth`)."""
        self._spool.append("params", values=_flatten(params))

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log numbers of one step.

        A number that this run has already reported for the same step is left out. A resumed training repeats the steps
        after its last checkpoint with the same numbers at another time, and MLflow would keep both.
        """
        fresh = {key: float(value) for key, value in metrics.items() if (key, step) not in self._reported}
        self._reported.update((key, step) for key in fresh)
        if fresh:
            self._spool.append("metrics", values=fresh, step=step)

    def log_image(self, key: str, path: Path, step: int = 0) -> None:
        """Log a PNG file. It is copied, since a stage's folder is renamed when the stage is finished.

        A picture that this run has already logged for the same step is left out, as a number is.
        """
        if (key, step) in self._shown:
            return
        self._shown.add((key, step))
        copy = self._spool.images / f"{uuid.uuid4().hex}.png"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
        self._spool.append("image", key=key, file=copy.name, step=step)

    def log_file(self, path: Path) -> None:
        """Log a file under its own name. It is copied."""
        self._spool.append_artifact(path)

    def log_inputs(self, folders: Sequence[Path]) -> None:
        """Log the folders that a stage reads as datasets, with the digests of their manifests. A path is its name."""
        self._spool.append("inputs", folders=[{"name": str(folder)} | _identity(folder) for folder in folders])

    def log_output(self, folder: Path) -> None:
        """Log the path and the manifest's digest of a stage's finished output. A model is registered too."""
        self._spool.append("output", **_identity(folder), facts=model_registry.describe(folder))


@contextmanager
def open_tracker(stage: str) -> Iterator[Tracker]:
    """The tracker of a stage.

    It writes into the spool that the variable `SANA15_SPOOL` names, which the flow that opened it sends and ends.
    Without the variable it opens a spool of its own.
    """
    given = os.environ.get(SPOOL_VARIABLE)
    if given is not None:
        spool = join_spool(Path(given))
        try:
            yield Tracker(spool)
        finally:
            spool.close()
        return
    spool = open_spool(SPOOLS, stage, run_tags(stage, Path.cwd()))
    with Sender(SPOOLS) as sender:
        sender.add(spool)
        status = "FINISHED"
        try:
            yield Tracker(spool)
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            spool.append("end", status=status)


def run_tags(stage: str, workspace: Path) -> dict[str, str]:
    """Tags that name the stage, the workspace and the git commit of a run."""
    commit = git_commit(workspace)
    tags = {"sana15.stage": stage, "sana15.workspace": str(workspace)}
    return tags if commit is None else tags | {COMMIT_TAG: commit}


def _identity(folder: Path) -> dict[str, str]:
    return {"folder": str(folder.resolve()), "digest": sha256_file(folder / MANIFEST)}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

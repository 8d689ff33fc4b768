"""A flow run in MLflow: a parent run, a child run for each stage, and a child run for each scored model.

Tags connect a run with git, DVC and Prefect: the commit, the stage's entry of dvc.lock (on the parent run the digest of
the whole file), and the id of the flow run. Everything is written to files on disk (spools), which one thread of the
flow sends. So the processes of the stages need no MLflow, and if its server is away the runs only appear later.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.building.dvc_lock import DVC_LOCK_FILE
from tasks.system.manifest import sha256_file
from tasks.tracking.mlflow_sender import Sender
from tasks.tracking.report_spool import SPOOLS, Spool, open_spool, status_after
from tasks.tracking.tracker import SPOOL_VARIABLE, run_tags

PREFECT_TAG = "prefect.flow_run_id"
ENTRY_TAG = "dvc.lock_entry"
LOCK_TAG = "dvc.lock_sha256"
CACHED_TAG = "sana15.cached"
MAX_TAG = 8000
"""MLflow's limit for a tag, in characters. A longer value is cut."""


class MlflowRuns:
    """The MLflow runs of one flow run; see `open_mlflow_runs`. Its methods may be called from several threads."""

    def __init__(self, root: Path, sender: Sender, flow_run_id: str) -> None:
        self._root, self._sender, self._tags = root, sender, {PREFECT_TAG: flow_run_id}
        self._stages: dict[str, Spool] = {}
        self.parent = self._open("sana15", None)

    def begin_stage(self, stage: str) -> dict[str, str]:
        """The environment variables by which a stage's process finds its MLflow run. The run is opened if need be."""
        # After a failed attempt the stage resumes from a checkpoint. The second attempt goes on in the same run, so
        # that one run has the whole curve.
        if stage not in self._stages:
            self._stages[stage] = self._open(stage, self.parent)
        return {SPOOL_VARIABLE: str(self._stages[stage].path)}

    def finish_stage(self, stage: str, entry: Mapping[str, Any]) -> None:
        """End the MLflow run of a stage that is built, and give it the stage's entry of dvc.lock."""
        self._end(self._stages.pop(stage), {ENTRY_TAG: json.dumps(entry)})

    def record_cached_stage(self, stage: str, entry: Mapping[str, Any], digest: str) -> None:
        """Make a run for a stage that was up to date. It points to the run that made the output with this `digest`."""
        spool = self._open(stage, self.parent)
        spool.append("made", digest=digest)
        self._end(spool, {ENTRY_TAG: json.dumps(entry), CACHED_TAG: "true"})

    def record_models(self, models: list[dict[str, Any]]) -> None:
        """Make a run for each model of `results/summary.json`, so that MLflow's UI can compare the model sizes.

        A score has the same name as in the run of the model's stage evaluate (`geneval/overall`, `best_of/4`). The ends
        of its interval have that name with `/low` and `/high` behind it.
        """
        for model in models:
            numbers = {_metric_name(key, model["scorer"]): value for key, value in _numbers(model).items()}
            spool = self._open(f"model {model['name']}", self.parent)
            spool.append("params", values={key: numbers.pop(key) for key in ("depth", "parameters")})
            spool.append("metrics", values=numbers, step=0)
            self._end(spool, {"sana15.model": model["name"]})

    def close(self, status: str) -> None:
        """End the parent run, and the runs of stages that were begun and not finished, with this MLflow status."""
        for spool in self._stages.values():
            self._end(spool, {}, status)
        lock = self._root / DVC_LOCK_FILE
        self._end(self.parent, {LOCK_TAG: sha256_file(lock)} if lock.exists() else {}, status)

    def _open(self, name: str, parent: Spool | None) -> Spool:
        tags = run_tags(name, self._root) | self._tags
        spool = open_spool(self._root / SPOOLS, name, tags, parent.header["key"] if parent else None)
        self._sender.add(spool)
        return spool

    def _end(self, spool: Spool, tags: Mapping[str, str], status: str = "FINISHED") -> None:
        spool.append("tags", values={key: value[:MAX_TAG] for key, value in tags.items()})
        spool.append("end", status=status)


@contextmanager
def open_mlflow_runs(root: Path, flow_run_id: str, flow_parameters: Mapping[str, Any]) -> Iterator[MlflowRuns]:
    """The MLflow runs of a flow run in the workspace `root`. They end when the block ends, with its status.

    `flow_parameters` (profile and overrides) become the params of the parent run.
    """
    with Sender(root / SPOOLS) as sender:
        mlflow_runs = MlflowRuns(root, sender, flow_run_id)
        mlflow_runs.parent.append("params", values=dict(flow_parameters))
        status = "FINISHED"
        try:
            yield mlflow_runs
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            mlflow_runs.close(status)


def _metric_name(key: str, scorer: str) -> str:
    """The name in MLflow of a number of `results/summary.json`.

    It is `geneval/overall` for `score/overall` by the scorer geneval, `geneval/counting` for
    `score/tasks/counting/value`, `geneval/seen` for `by_seen/seen/overall`, and `best_of/4` for `best_of/4/overall`.
    """
    name = key.replace("/tasks/", "/").removesuffix("/value")
    if name.startswith("score/"):
        return name.replace("score/", f"{scorer}/", 1)
    return name.replace("by_seen/", f"{scorer}/").removesuffix("/overall")


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested mapping, each under its keys joined by slashes."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat

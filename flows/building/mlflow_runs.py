"""The MLflow side of a flow run: a parent run, a child for each stage, and a child for each model that was scored.

Tags join the three worlds: the git commit, the stage's entry of dvc.lock (on the parent the digest of the whole file),
and the Prefect flow run. All of it goes through spools, which one thread of the flow sends: the stages' processes need
no MLflow, and a tracker that is away only makes the runs appear later.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.building.dvc_lock import LOCK_FILE
from tasks.system.manifest import sha256_file
from tasks.tracking.mlflow_sender import Sender
from tasks.tracking.spool import SPOOLS, Spool, open_spool, status_after
from tasks.tracking.tracker import SPOOL_VARIABLE, run_tags

PREFECT_TAG = "prefect.flow_run_id"
ENTRY_TAG = "dvc.lock_entry"
LOCK_TAG = "dvc.lock_sha256"
CACHED_TAG = "sana15.cached"
# MLflow's own limit; a longer entry is cut
MAX_TAG = 8000


class MlflowRuns:
    """The runs of one flow run; see `open_mlflow_runs`. Methods may be called from several threads."""

    def __init__(self, root: Path, sender: Sender, flow_run_id: str) -> None:
        self._root, self._sender, self._tags = root, sender, {PREFECT_TAG: flow_run_id}
        self._stages: dict[str, Spool] = {}
        self.parent = self._open("sana15", None)

    def begin(self, stage: str) -> dict[str, str]:
        """The environment in which a stage's process reports to its run; a second attempt goes on in the same run."""
        if stage not in self._stages:
            self._stages[stage] = self._open(stage, self.parent)
        return {SPOOL_VARIABLE: str(self._stages[stage].path)}

    def finish(self, stage: str, entry: Mapping[str, Any]) -> None:
        """End the run of a stage that is built, with its entry of dvc.lock."""
        self._end(self._stages.pop(stage), {ENTRY_TAG: json.dumps(entry)})

    def link(self, stage: str, entry: Mapping[str, Any], digest: str) -> None:
        """Give a stage that was up to date a run that points at the one that made its output."""
        spool = self._open(stage, self.parent)
        spool.append("made", digest=digest)
        self._end(spool, {ENTRY_TAG: json.dumps(entry), CACHED_TAG: "true"})

    def record_models(self, models: list[dict[str, Any]]) -> None:
        """One run for each model of `results/summary.json`, so that MLflow's UI can compare the sizes.

        A score has the name that it has in the run of the model's stage geneval (`geneval/overall`, `best_of/4`). The
        ends of its interval have that name too, with `/low` and `/high` behind it.
        """
        for model in models:
            numbers = {_metric_name(key): value for key, value in _numbers(model).items()}
            spool = self._open(f"model {model['name']}", self.parent)
            spool.append("params", values={key: numbers.pop(key) for key in ("depth", "parameters")})
            spool.append("metrics", values=numbers, step=0)
            self._end(spool, {"sana15.model": model["name"]})

    def close(self, status: str) -> None:
        """End the parent, and the stages that were begun and not finished."""
        for spool in self._stages.values():
            self._end(spool, {}, status)
        lock = self._root / LOCK_FILE
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
def open_mlflow_runs(root: Path, flow_run_id: str, given: Mapping[str, Any]) -> Iterator[MlflowRuns]:
    """The runs of a flow run in the workspace `root`; `given` (profile, overrides) are the parent's params."""
    with Sender(root / SPOOLS) as sender:
        mlflow_runs = MlflowRuns(root, sender, flow_run_id)
        mlflow_runs.parent.append("params", values=dict(given))
        status = "FINISHED"
        try:
            yield mlflow_runs
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            mlflow_runs.close(status)


def _metric_name(key: str) -> str:
    """The name of a number of `results/summary.json` in MLflow.

    It is `geneval/counting` for `geneval/tasks/counting/value`, `geneval/seen` for `by_seen/seen/overall`, and
    `best_of/4` for `best_of/4/overall`. `geneval/overall` stays.
    """
    name = key.replace("/tasks/", "/").removesuffix("/value")
    if name == "geneval/overall":
        return name
    return name.replace("by_seen/", "geneval/").removesuffix("/overall")


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested mapping under names joined by slashes."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat

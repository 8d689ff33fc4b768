"""A flow run in MLflow: a parent run, a child run for each stage that ran, and a child run for each scored model.

The parent run is named by its profile and overrides, as its folder under `runs/` is (`default`, `smoke`). Its
description links the flow run in Prefect and the runs that made what was up to date, and has the table of models when
the run has ended. A point of a sweep has no parent run of its own, since the sweep has opened one for it.

Tags connect a run with git, DVC and Prefect: the commit, the digests that DVC knows the stage's outputs by (on the
parent run the digest of the whole dvc.lock), and the id of the flow run. The stage's whole entry of dvc.lock is an
artifact, since it names all files of the stage's code and is longer than a tag may be. Everything is written to files
on disk (spools), which one thread of the flow sends. So the processes of the stages need no MLflow, and if its server
is away the runs only appear later.
"""

import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.building.durable_dvc_lock import DVC_LOCK_FILE
from flows.building.model_words import model_sentence, models_in_markdown
from flows.building.workspace import run_name
from flows.entry.password import API_VARIABLE
from flows.entry.project_servers import HOST, mlflow_server, prefect_port
from tasks.system import paths
from tasks.system.manifest import MANIFEST, sha256_file
from tasks.tracking import model_registry
from tasks.tracking.mlflow_sender import NOTE_TAG, Sender
from tasks.tracking.mlflow_store import connect
from tasks.tracking.mlflow_views import run_path
from tasks.tracking.report_spool import SPOOLS, Spool, open_spool, status_after
from tasks.tracking.sample_sheet import write_sample_sheet
from tasks.tracking.tracker import COMMIT_TAG, SPOOL_VARIABLE, Tracker, run_tags

PREFECT_TAG = "prefect.flow_run_id"
OUTPUTS_TAG = "dvc.outs"
LOCK_TAG = "dvc.lock_sha256"
MODEL_TAG = "sana15.model"
ADDRESS_SECONDS = 15.0
"""How long a flow waits for MLflow's id of its run. A run in which all is up to date may be faster than MLflow."""
PICTURES = "pictures.npy"
"""The file of `tasks.evaluation.picture_pool` with a model's pictures. To import its name from there imports torch."""
ENTRY_FILE = "dvc.lock.json"
"""The artifact with a stage's entry of dvc.lock."""

Record = dict[str, Any]


class MlflowRuns:
    """The MLflow runs of one flow run; see `open_mlflow_runs`. Its methods may be called from several threads."""

    def __init__(self, root: Path, sender: Sender, flow_run_id: str, name: str, point: str | None = None) -> None:
        self._root, self._sender, self._flow_run_id, self._name = root, sender, flow_run_id, name
        self._stages: dict[str, Spool] = {}
        self._cached: dict[str, str] = {}
        self._models = ""
        self.parent = self._open(name, None) if point is None else None
        self._parent_key = self.parent.header["key"] if self.parent is not None else point
        self._describe()

    def begin_stage(self, stage: str) -> dict[str, str]:
        """The environment variables by which a stage's process finds its MLflow run. The run is opened if need be."""
        # After a failed attempt the stage resumes from a checkpoint. The second attempt goes on in the same run, so
        # that one run has the whole curve.
        if stage not in self._stages:
            self._stages[stage] = self._open(stage, self._parent_key)
        return {SPOOL_VARIABLE: str(self._stages[stage].path)}

    def finish_stage(self, stage: str, entry: Mapping[str, Any]) -> None:
        """End the MLflow run of a stage that is built, and give it the stage's entry of dvc.lock."""
        spool = self._stages.pop(stage)
        with tempfile.TemporaryDirectory() as folder:
            (file := Path(folder) / ENTRY_FILE).write_text(json.dumps(entry, indent=2), encoding="utf-8")
            spool.append_artifact(file)
        self._end(spool, {OUTPUTS_TAG: json.dumps({out["path"]: out["md5"] for out in entry["outs"]})})

    def record_cached_stage(self, stage: str, digest: str) -> None:
        """Note a stage that was up to date. The parent run will link the run that made the output with this digest."""
        self._cached[stage] = digest

    def record_models(self, models: Sequence[Record]) -> None:
        """Make a run for each model of `results/summary.json`, so that MLflow's UI can compare the model sizes.

        The run has the numbers by which one chooses a model, and a sheet of its pictures. The stages' runs have all
        others. A version of the registered model gets the scores as tags.
        """
        for model in models:
            spool = self._open(f"model {model['name']}", self._parent_key)
            sizes = {key: model[key] for key in ("depth", "parameters")}
            spool.append("params", values={"experiment": self._name} | sizes)
            numbers = metrics_of(model)
            spool.append("metrics", values=numbers, step=0)
            self._log_sample_sheet(spool, model["name"])
            tasks = {f"{model['scorer']}/{task}" for task in model["score"].get("tasks", {})}
            self._tag_version(spool, model["name"], numbers, tasks)
            self._end(spool, {MODEL_TAG: model["name"], NOTE_TAG: model_sentence(model)})

    def describe_models(self, summary: Record) -> None:
        """Give the parent run's description the table of the models of `results/summary.json`, when the run ends."""
        self._models = models_in_markdown(summary)

    def record_report(self, *files: Path) -> None:
        """Make these files artifacts of the parent run, where it is this flow run's own."""
        for path in files:
            if self.parent is not None and path.exists():
                self.parent.append_artifact(path)

    def address(self, artifact: str) -> str | None:
        """The address of an artifact of the parent run in MLflow's UI. It waits a while for the run to be sent.

        None if no server of MLflow is known, if it does not take the run in time, or if the run is a sweep's.
        """
        server = mlflow_server()
        if server is None or self.parent is None:
            return None
        deadline = time.monotonic() + ADDRESS_SECONDS
        while (run_id := self.parent.sent()[1]) is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)
        _, experiment = connect()
        return server + run_path(experiment, run_id, f"/artifacts/{artifact}")

    def close(self, status: str) -> None:
        """End the parent run, and the runs of stages that were begun and not finished, with this MLflow status."""
        for spool in self._stages.values():
            self._end(spool, {}, status)
        if self.parent is not None:
            self._describe()
            lock = self._root / DVC_LOCK_FILE
            self._end(self.parent, {LOCK_TAG: sha256_file(lock)} if lock.exists() else {}, status)

    def _describe(self) -> None:
        """Write the description of the parent run."""
        if self.parent is not None:
            text = description(self._root, self._flow_run_id, self.parent.header["tags"].get(COMMIT_TAG))
            self.parent.append("note", text=text, models=self._models, cached=dict(self._cached))

    def _log_sample_sheet(self, spool: Spool, model: str) -> None:
        pictures = self._root / paths.EVALUATION / model / PICTURES
        if pictures.exists():
            with tempfile.TemporaryDirectory() as folder:
                write_sample_sheet(pictures, sheet := Path(folder) / "samples.png")
                Tracker(spool).log_image("samples", sheet)

    def _tag_version(self, spool: Spool, model: str, numbers: Mapping[str, float], tasks: Collection[str]) -> None:
        """Tag the model's version with its numbers, but not with those of the `tasks`, which would hide the others."""
        folder = (self._root / paths.model_folder(model)).resolve()
        if (folder / MANIFEST).exists() and (facts := model_registry.describe(folder)) is not None:
            shown = {name: value for name, value in numbers.items() if name not in tasks}
            scores = {name: f"{value:.4g}" for name, value in shown.items()}
            digest = sha256_file(folder / MANIFEST)
            spool.append("version", folder=str(folder), digest=digest, facts=facts, scores=scores)

    def _open(self, name: str, parent: str | None) -> Spool:
        tags = run_tags(name, self._root) | {PREFECT_TAG: self._flow_run_id}
        spool = open_spool(self._root / SPOOLS, name, tags, parent)
        self._sender.add(spool)
        return spool

    def _end(self, spool: Spool, tags: Mapping[str, str], status: str = "FINISHED") -> None:
        spool.append("tags", values=dict(tags))
        spool.append("end", status=status)


@contextmanager
def open_mlflow_runs(root: Path, flow_run_id: str, flow_parameters: Mapping[str, Any]) -> Iterator[MlflowRuns]:
    """The MLflow runs of a flow run in the workspace `root`. They end when the block ends, with its status.

    The parameters of the flow, profile and overrides, become params of the parent run, and name it. If the parameters
    name a sweep's point, the runs have the run of this point as parent instead, which the sweep opens.
    """
    point = flow_parameters.get("point")
    with Sender(root / SPOOLS) as sender:
        mlflow_runs = MlflowRuns(root, sender, flow_run_id, run_name(flow_parameters), point and point["key"])
        if mlflow_runs.parent is not None:
            given = {key: value for key, value in flow_parameters.items() if key != "point"}
            mlflow_runs.parent.append("params", values=given)
        status = "FINISHED"
        try:
            yield mlflow_runs
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            mlflow_runs.close(status)


def description(root: Path, flow_run_id: str, commit: str | None) -> str:
    """What MLflow's UI shows above a parent run, in markdown: the flow run in Prefect, the report and the commit.

    A temporary server of Prefect ends with the flow. `make up` starts a server that shows its runs too, so the link
    leads there.
    """
    api, later = os.environ.get(API_VARIABLE), ""
    if not api:
        api = f"http://{HOST}:{prefect_port()}/api"
        later = " (it had a temporary server: `make up` starts one that shows it)"
    address = f"{api.rstrip('/').removesuffix('/api')}/runs/flow-run/{flow_run_id}"
    lines = [
        f"* Flow run in Prefect: [{flow_run_id}]({address}){later}",
        f"* Report: `{root.resolve() / paths.RESULTS / 'report.html'}`, also below *Artifacts*",
        f"* Commit: `{commit}`" if commit else "* Commit: none, since the folder is not in git",
    ]
    return "\n".join(lines)


def metrics_of(model: Record) -> dict[str, float]:
    """The numbers by which one compares models, under the names that the stages' runs have for them.

    They are the score with its interval (`geneval/overall`, `geneval/low`, `geneval/high`), each task
    (`geneval/counting`), the best of N (`best_of/4`), the held-out loss, and the seconds for a picture if they were
    measured. Further numbers are there if the record has them: a distance of pictures, and the CLIP score.
    """
    scorer, score = model["scorer"], model["score"]
    numbers = {f"{scorer}/{key}": score[key] for key in ("overall", "low", "high")}
    numbers |= {f"{scorer}/{task}": interval["value"] for task, interval in score.get("tasks", {}).items()}
    numbers |= {f"best_of/{n}": best["overall"] for n, best in model.get("best_of", {}).items()}
    for key in ("heldout_loss", "seconds_per_picture", "distance", "clip_score"):
        value = model.get(key)
        value = value.get("value") if isinstance(value, Mapping) else value
        if value is not None:
            numbers[key] = value
    return numbers

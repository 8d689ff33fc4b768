"""What runs whole pipelines: clones of the project as it is now, and a Prefect server with workers for them."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from flows.building.workspace import code_files
from tests.helpers.other_account import free_port
from tests.helpers.patience import PATIENCE_SECONDS, PIPELINE_SECONDS, wait_for
from tests.helpers.small_workspace import PROJECT

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Clone:
    """A clone of the project, and the environment to run it in."""

    root: Path
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; it may be a whole pipeline."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PIPELINE_SECONDS,
        )

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, *arguments)

    def deploy(self, **parameters: Any) -> subprocess.CompletedProcess[str]:
        """`prefect deployment run sana15/full-pipeline --watch` with parameters."""
        given = [text for name, value in parameters.items() for text in ("-p", f"{name}={json.dumps(value)}")]
        return self.run(str(BIN / "prefect"), "deployment", "run", "sana15/full-pipeline", "--watch", *given)

    def begin_sweep(self, where: str, log: Path) -> psutil.Popen:
        """The smoke profile's sweep `prune-depth` in a process of its own, with its output in a file."""
        with open(log, "w") as file:
            return psutil.Popen(
                [sys.executable, "-m", "flows.sweep", "prune-depth", "--profile", "smoke", "--where", where],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def lock(self) -> dict[str, Any]:
        """The entries of dvc.lock."""
        return yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]

    def mlflow_runs(self, query: str = "") -> list[Run]:
        client = MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        return client.search_runs([client.get_experiment_by_name("sana15").experiment_id], query, max_results=1000)

    def mlflow_artifact(self, run: Run, name: str) -> Any:
        """What a run's artifact of this name, a JSON file, says."""
        return json.loads((self.root / "mlartifacts" / run.info.run_id / "artifacts" / name).read_text())


def new_origin(root: Path, params: Mapping[str, Any]) -> Path:
    """A git repository of the project's code as it is now, with these params as its own."""
    for name in code_files(PROJECT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, root / name)
    (root / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False))
    for command in ("init -q", "add -A", "-c user.name=test -c user.email=test@localhost commit -q -m code"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    return root


def new_clone(origin: Path, root: Path, **environment: str) -> Clone:
    """A clone of `origin`, to be run without this process's own settings of Prefect, MLflow and Triton."""
    subprocess.run(["git", "clone", "-q", str(origin), str(root)], check=True)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW", "TRITON"))}
    ours = {"PREFECT_HOME": str(root / ".prefect"), "PATH": f"{BIN}:{plain['PATH']}"}
    return Clone(root, {**plain, **ours, **environment})


class PrefectServer:
    """A server and workers, in sessions of their own, with their output in files of `folder`.

    It asks for a password, as a shared one does; `access` is what the environment of its clients must hold.
    """

    def __init__(self, clone: Clone, folder: Path) -> None:
        self.clone, self.folder, port = clone, folder, free_port()
        self.api, password = f"http://127.0.0.1:{port}/api", secrets.token_urlsafe(32)
        self.access = {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": password}
        clone.environment.update(self.access, PREFECT_SERVER_API_AUTH_STRING=password)
        clone.environment["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        clone.environment["PREFECT_WORKER_QUERY_SECONDS"] = "2"  # 10 by default
        self._begun: list[psutil.Popen] = []
        self.begin("server", "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui")
        wait_for(self._healthy, "Prefect's server")

    def begin(self, name: str, *command: str) -> psutil.Popen:
        """Start a command of Prefect that stays."""
        with open(self.folder / f"{name}.log", "ab") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "prefect", *command],
                cwd=self.folder,
                env=self.clone.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._begun.append(process)
        return process

    def worker(self, name: str, pool: str) -> psutil.Popen:
        """A process worker that takes one run at a time, as a host with one GPU would."""
        return self.begin(name, "worker", "start", "--pool", pool, "--type", "process", "--name", name, "--limit", "1")

    def say(self, *command: str) -> None:
        """Run a command of Prefect."""
        done = self.clone.python("-m", "prefect", *command)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        """End all that was begun, and what it began, the server last."""
        for process in reversed(self._begun):
            kill_all(process, signal.SIGTERM)
        for process in reversed(self._begun):
            try:
                process.wait(20)
            except psutil.TimeoutExpired:
                kill_all(process, signal.SIGKILL)

    def _healthy(self) -> bool:
        return urllib.request.urlopen(f"{self.api}/health", timeout=PATIENCE_SECONDS).status == 200


def kill_all(process: psutil.Process, signum: int = signal.SIGKILL) -> None:
    """Signal a process and everything below it at once, as a host that loses its power does."""
    try:
        every = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in every:
        try:
            os.kill(one.pid, signum)
        except ProcessLookupError:
            continue

"""Clones of the project as it is now, to run whole flows in."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from flows.building.workspace import code_files

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Clone:
    """A clone of the project, and the environment to run it in."""

    root: Path
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone."""
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
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


def as_another_account(code: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run plain Python as `nobody` in the working directory, where this process may; as itself where it may not.

    It knows nothing of the project but what any account can see, and reads what is `said` on its input.
    """
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    system = "/usr/bin/python3"  # nobody may not be able to enter the folder of this one
    python = system if os.access(system, os.X_OK) else sys.executable
    return subprocess.run([python, "-I", "-c", code], env={}, capture_output=True, text=True, input=said, **other)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])

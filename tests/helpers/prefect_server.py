"""A Prefect server of a test's own, with workers that can be killed."""

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.helpers.clones import Clone, free_port


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
        try:
            return urllib.request.urlopen(f"{self.api}/health", timeout=2).status == 200
        except OSError:
            return False


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


def wait_for(true: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return when `true()` is; fails after `seconds`."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)

"""Prefect's temporary server outlives Ctrl-C in the terminal, and neither a flow's end nor its death."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from flows.entry.project_servers import listening_ports
from tests.helpers.patience import PATIENCE_SECONDS, wait_for
from tests.helpers.project_folder import PROJECT, plain_environment, project_folder

# The command of the pipeline, whose flow has nothing to do but to wait.
WAITS = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
import flows.full_pipeline
from prefect import flow

@flow
def waits(**parameters):
    Path("runs").touch()
    time.sleep(3600)

flows.full_pipeline.full_pipeline = waits
flows.full_pipeline.announced_time = lambda *arguments: nullcontext()
sys.exit(flows.full_pipeline.main([]))
"""


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    """A flow that runs in the foreground of a session, as a terminal has it."""
    with project_folder() as root:
        shutil.copyfile(PROJECT / "params.yaml", root / "params.yaml")
        process = subprocess.Popen(
            [sys.executable, "-c", WAITS],
            env=plain_environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            wait_for(lambda: Path("runs").exists() or process.poll() is not None, "the flow")
            yield process
        finally:
            process.kill()
            process.wait()


def server_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The child that listens on a port."""
    (server,) = [child for child in psutil.Process(process.pid).children() if listening_ports(child)]
    return server


def has_ended(process: psutil.Process) -> bool:
    """Whether it has ended; nobody may have noticed yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_in_the_terminal_ends_a_flow_without_a_traceback_and_its_server_hears_of_it(
    running: subprocess.Popen[str],
) -> None:
    server = server_of(running)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 130
    assert "Traceback" not in said and said.splitlines()[-1] == "sana15: stopped; run the same command to go on"
    assert has_ended(server)
    with closing(sqlite3.connect(Path(".prefect/prefect.db"))) as database:
        states = [state for (state,) in database.execute("SELECT state_type FROM flow_run")]
    assert states in (["CRASHED"], ["CANCELLED"])


def test_the_server_of_a_flow_that_is_killed_ends_too(running: subprocess.Popen[str]) -> None:
    server = server_of(running)
    running.send_signal(signal.SIGKILL)
    running.wait()
    wait_for(lambda: has_ended(server), "the end of the server")

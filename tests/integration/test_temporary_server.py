"""Prefect's temporary server outlives Ctrl-C in the terminal, and neither a flow's end nor its death.

One that cannot start is named in one line.
"""

import os
import random
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

# The command of the pipeline, whose flow has nothing to do.
ENDS = """
import resource, sys
from contextlib import nullcontext
import flows.full_pipeline
from prefect import flow

@flow
def ends(**parameters):
    return {"workspace": ".", "stages": []}

flows.full_pipeline.full_pipeline = ends
flows.full_pipeline.announced_time = lambda *arguments: nullcontext()
if largest := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
sys.exit(flows.full_pipeline.main([]))
"""
NEWER = "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('ffffffffffff')"


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


def flow_that_ends(largest_file: int = 0, **own: str) -> subprocess.CompletedProcess[str]:
    """The command in the working directory, which may write no file of more bytes than that."""
    shutil.copyfile(PROJECT / "params.yaml", "params.yaml")
    environment = plain_environment() | own
    command = [sys.executable, "-c", ENDS, str(largest_file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("fault", ["damaged", "newer", "no room"])
def test_a_server_that_cannot_start_is_one_line_with_its_reason(fault: str) -> None:
    with project_folder() as root:
        (root / ".prefect").mkdir()
        path = root / ".prefect/prefect.db"
        if fault == "damaged":
            path.write_bytes(random.Random(0).randbytes(20_000))
        if fault == "newer":
            with closing(sqlite3.connect(path)) as database:
                database.executescript(NEWER)
        done = flow_that_ends(100_000 if fault == "no room" else 0)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert line.startswith(f"sana15: Prefect's temporary server did not start: its database {path} ")
    says = {"damaged": "move it away", "newer": "made by a newer version", "no room": "disk is not full"}
    assert says[fault] in line


def test_a_proxy_of_the_environment_does_not_come_between_a_flow_and_its_server() -> None:
    dead = "http://127.0.0.1:9"
    with project_folder():
        done = flow_that_ends(http_proxy=dead, HTTP_PROXY=dead, all_proxy=dead)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_that_fails_while_a_flow_runs_is_one_line_with_its_reason() -> None:
    with project_folder() as root:
        assert flow_that_ends().returncode == 0
        path = root / ".prefect/prefect.db"
        with closing(sqlite3.connect(path)) as database:
            database.executescript("DROP TABLE flow_run_state")
        done = flow_that_ends()
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3, done.stderr
    assert "lacks a table (it is half made): move it away" in done.stderr

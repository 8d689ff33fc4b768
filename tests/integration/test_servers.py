"""Starting and stopping servers: busy ports named, nothing started twice, nothing left behind."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows.building.child_processes import GRACE_SECONDS
from flows.entry.password import credentials
from flows.servers import FLOW_STOP_SECONDS, Server, await_health, refuse_busy_port, start, status, stop
from flows.sweeps.point_process import POINT_GRACE_SECONDS
from tasks.system.errors import UserError
from tasks.tracking.mlflow_sender import LAST_SEND_SECONDS
from tests.helpers.patience import PATIENCE_SECONDS, wait_for
from tests.helpers.project_folder import project_folder, python

PROJECT = Path(__file__).parents[2]
GUARDED = """
import os, sys
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
password = os.environ["ASKS_FOR"]
class Guarded(BaseHTTPRequestHandler):
    def do_GET(self):
        given = self.headers.get("Authorization")
        known = not password or given == "Basic " + b64encode(password.encode()).decode()
        self.send_response(200 if known else 401)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Guarded).serve_forever()
"""
TEMPORARY = """
import json, urllib.error, urllib.request
import flows.entry.prefect_environment
from prefect import flow, get_client

@flow
def asks():
    client = get_client(sync_client=True)
    url = f"{client.api_url}flow_runs/filter"
    try:
        without = urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST")).status
    except urllib.error.HTTPError as error:
        without = error.code
    return [url, without, len(client.read_flow_runs())]

print(json.dumps(asks()))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A real small web server that asks for the password; `.sana15` lies in the test's folder."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (sys.executable, "-c", GUARDED, str(port))
    return Server("web", command, port, "WEB_PORT", "/")


def test_a_busy_port_is_named_with_its_owner_and_the_way_out(server: Server) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        with pytest.raises(UserError, match=f"port {server.port} is in use by .*{os.getpid()}.*: set WEB_PORT="):
            refuse_busy_port(server)
    refuse_busy_port(server)


def test_up_ends_with_one_line_and_starts_nothing_if_a_port_is_busy(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        environment = {**os.environ, "PREFECT_PORT": str(other.getsockname()[1]), "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, "-m", "flows.servers", "up"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
    assert done.returncode == 2
    assert "set PREFECT_PORT=" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob(".sana15/servers/*.pid"))


def test_a_server_starts_once_answers_and_is_gone_after_stop(server: Server) -> None:
    start(server, {"ASKS_FOR": credentials()})
    await_health(server)
    process = server.process()
    start(server, {"ASKS_FOR": credentials()})
    assert server.process() == process
    stop(server)
    assert not process.is_running()
    assert server.process() is None and not server.healthy()


def test_a_pid_that_another_program_has_got_is_not_ours(server: Server) -> None:
    server.pid_file.parent.mkdir(parents=True)
    server.pid_file.write_text(f"{os.getpid()} {psutil.Process().create_time() - 1}")
    assert server.process() is None
    stop(server)


def test_a_server_that_dies_at_its_start_is_explained_by_its_last_line(server: Server) -> None:
    broken = Server("broken", (sys.executable, "-c", "raise SystemExit('no such database')"), server.port, "", "/")
    start(broken)
    with pytest.raises(UserError, match="no such database"):
        await_health(broken)


def test_status_prints_the_line_that_leads_commands_to_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_PORT", "4321")
    monkeypatch.setenv("MLFLOW_PORT", "4322")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for healthy in (True, False):
        monkeypatch.setattr(Server, "healthy", lambda _server, healthy=healthy: healthy)
        status()
        printed = capsys.readouterr().out
        assert ("\nexport PREFECT_API_URL=http://127.0.0.1:4321/api " in printed) == healthy
        # MLflow's bare address opens a page about traces
        table = re.search(r"mlflow   up   http://127.0.0.1:4322/#/experiments/\d+/runs\?workflowType=\w+ ", printed)
        assert (table is not None) == healthy
        assert credentials().partition(":")[2] not in printed


@pytest.mark.parametrize(
    ("password", "said"), [("", "asks for no password"), ("sana15:another", "does not take the password")]
)
def test_a_server_with_another_password_or_none_is_not_taken_for_ours(server: Server, password: str, said: str) -> None:
    start(server, {"ASKS_FOR": password})
    try:
        with pytest.raises(UserError, match=f"web {said}.*: run make down, then make up"):
            await_health(server)
        assert not server.healthy()
    finally:
        stop(server)


def test_the_temporary_server_of_a_flow_asks_for_the_password() -> None:
    with project_folder():
        done = python(TEMPORARY)
    assert done.returncode == 0, done.stderr
    url, without, seen = json.loads(done.stdout.splitlines()[-1])
    assert url.startswith("http://127.0.0.1:") and (without, seen) == (401, 1)


# A worker, which ends at once on TERM, and its flow, which first saves something. The flow may have its own session.
WORKER = """
import signal, subprocess, sys, time
from pathlib import Path
flow = '''
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(2)
    Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else save)
Path("flow_runs").touch()
time.sleep(3600)
'''
kind = sys.argv[1]
subprocess.Popen([sys.executable, "-c", flow, kind], start_new_session=kind != "same session")
time.sleep(3600)
"""


@pytest.mark.parametrize("kind", ["same session", "own session", "deaf"])
def test_down_leaves_no_flow_behind_and_lets_it_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "deaf":
        monkeypatch.setattr("flows.servers.FLOW_STOP_SECONDS", 1.0)
    worker = Server("worker", (sys.executable, "-c", WORKER, kind))
    start(worker)
    wait_for(lambda: Path("flow_runs").exists(), "the flow")
    (flow,) = worker.process().children()
    stop(worker)
    assert not flow.is_running() or flow.status() == psutil.STATUS_ZOMBIE
    assert Path("saved").exists() == (kind != "deaf")


def test_down_waits_for_a_flow_as_long_as_the_flow_may_take_itself() -> None:
    assert FLOW_STOP_SECONDS >= GRACE_SECONDS + LAST_SEND_SECONDS
    assert FLOW_STOP_SECONDS >= POINT_GRACE_SECONDS

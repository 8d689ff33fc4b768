"""The local servers: `python -m flows.servers up`, `status`, `down`.

They are Prefect's server, a worker for its work pool, and MLflow's server with its UI. Both servers listen on 127.0.0.1
only. All accounts of the host can reach that address, so both ask for the password in `.sana15/password`
(`flows.entry.password`). Each process has a session of its own, and its pid and log lie in `.sana15/servers/`.
`PREFECT_PORT` and `MLFLOW_PORT` choose other ports.
"""

import flows.entry.prefect_environment  # noqa: F401

import argparse
import base64
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType

import psutil

from flows.entry.password import (
    API_VARIABLE,
    CLIENT_PASSWORD_VARIABLE,
    PASSWORD,
    SERVER_PASSWORD_VARIABLE,
    USER,
    credentials,
    password_file,
)
from flows.entry.project_servers import HOST, SERVERS_FOLDER, listens, prefect_port, recorded_process
from flows.sweeps.point_process import POINT_GRACE_SECONDS
from tasks.system.error_lines import reason_in_output
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT, complain
from tasks.system.files import write_bytes
from tasks.system.processes import end_processes
from tasks.tracking.mlflow_sender import LAST_SEND_SECONDS
from tasks.tracking.mlflow_store import connect, tracking_uri
from tasks.tracking.mlflow_views import models_path, runs_path

POOL = "sana15"
POOL_TEMPLATE = Path(__file__).parent / "places" / "templates" / "process.json"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
FLOW_STOP_SECONDS = POINT_GRACE_SECONDS + LAST_SEND_SECONDS
"""How long the worker and its flows may take to end.

A flow gives its stages, or a sweep its points, their time to save a checkpoint, and then sends its last reports.
"""
WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Requests go past any proxy that the environment names, since it would learn the password."""
HEALTHY_ANSWERS = (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED)
"""How a healthy server answers: first to a request with our password, then to one without a password."""
MLFLOW_USERS = SERVERS_FOLDER / "mlflow_users.db"
MLFLOW_SETTINGS = f"""[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{MLFLOW_USERS}
auth_cache_ttl_seconds = 300
"""
"""MLflow's settings for users.

MLflow checks a password by a hash that takes long to compute, and one page makes dozens of requests. So it keeps the
answer for 300 seconds.
"""


@dataclass(frozen=True)
class Server:
    """A process that `up` starts and `down` stops.

    A server that listens has a `port`, the name of the `variable` that chooses the port, and in `health` a path that
    answers only with the password. The worker has none of these.
    """

    name: str
    command: tuple[str, ...]
    port: int | None = None
    variable: str = ""
    health: str = ""

    @property
    def url(self) -> str:
        """The address on which it listens."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file that it writes to."""
        return SERVERS_FOLDER / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """The file with its pid and the time at which it began."""
        return SERVERS_FOLDER / f"{self.name}.pid"

    def process(self) -> psutil.Process | None:
        """Its process, if it was started for this project and lives."""
        return recorded_process(self.pid_file)

    def healthy(self) -> bool:
        """Whether it answers with our password and refuses without one. The worker is healthy while it lives."""
        if self.port is None:
            return self.process() is not None
        return (self._answer(credentials()), self._answer()) == HEALTHY_ANSWERS

    def refuse_other_password(self) -> None:
        """Raises UserError if it refuses our password, or answers without one: it was started with other settings."""
        for sent, wrong, fault in (
            (credentials(), HTTPStatus.UNAUTHORIZED, f"does not take the password in {PASSWORD}"),
            (None, HTTPStatus.OK, "asks for no password"),
        ):
            if self._answer(sent) == wrong:
                raise UserError(f"{self.name} {fault}: run make down, then make up")

    def _answer(self, sent: str | None = None) -> int | None:
        """The HTTP status of its answer to these credentials, or to none. None if it does not answer.

        If another program has the port, no request is sent: a program of another account would learn the password.
        """
        if not listens(self.process(), self.port):
            return None
        request = urllib.request.Request(self.url + self.health)
        if sent is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(sent.encode()).decode()}")
        try:
            return WITHOUT_PROXY.open(request, timeout=2).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None


def servers() -> tuple[Server, Server, Server]:
    """Prefect's server, MLflow's server, and the worker."""
    prefect, mlflow = prefect_port(), int(os.environ.get("MLFLOW_PORT", "5000"))
    guarded = ("--app-name", "basic-auth", "--workers", "1")
    return (
        Server(
            "prefect",
            _python_module("prefect", "server", "start", "--host", HOST, "--port", str(prefect)),
            prefect,
            "PREFECT_PORT",
            "/api/admin/version",
        ),
        Server(
            "mlflow",
            _python_module("mlflow", "server", "--host", HOST, "--port", str(mlflow), *guarded),
            mlflow,
            "MLFLOW_PORT",
            "/version",
        ),
        Server("worker", _python_module("prefect", "worker", "start", "--pool", POOL, "--name", "local")),
    )


def prefect_api() -> str:
    """The value of `PREFECT_API_URL` with which Prefect's commands reach the server."""
    return f"{servers()[0].url}/api"


def up() -> None:
    """Start what is not up, make the deployments, and return when all servers answer.

    Raises UserError if a port is busy or a server does not start.
    """
    prefect, mlflow, worker = servers()
    for server in (prefect, mlflow):
        if server.process() is None:
            refuse_busy_port(server)
    connect()  # makes MLflow's database, since its server and a first run could otherwise make it at the same time
    os.environ |= {
        API_VARIABLE: prefect_api(),
        CLIENT_PASSWORD_VARIABLE: credentials(),
        SERVER_PASSWORD_VARIABLE: credentials(),
    }
    logged = {server: server.log.stat().st_size if server.log.exists() else 0 for server in (prefect, mlflow)}
    start(prefect)
    if mlflow.process() is None:
        # In a variable and not on the command line: the store's address may hold a password.
        start(mlflow, new_mlflow_users() | {"MLFLOW_BACKEND_STORE_URI": tracking_uri()})
    for server in (prefect, mlflow):
        await_health(server, logged[server])
    template = ("--base-job-template", str(POOL_TEMPLATE))
    _run_quietly(_python_module("prefect", "work-pool", "create", POOL, "--type", "process", *template, "--overwrite"))
    _run_quietly(_python_module("prefect", "--no-prompt", "deploy", "--all"))
    start(worker)
    status()


def status() -> None:
    """Print a line for each server: whether it is up, its address and its log. Then print how to use Prefect's server.

    The password itself is not printed, since the output may be kept in a log.
    """
    healthy = {server.name: server.healthy() for server in servers()}
    for server in servers():
        where = page_of(server, healthy[server.name])
        state = "up  " if healthy[server.name] else "down"
        print(f"{server.name:8} {state} {where}   log: {server.log}")
    if healthy["mlflow"]:
        print(f"all models with their scores: {servers()[1].url}{models_path(connect()[1])}")
    if healthy["prefect"]:
        path = shlex.quote(str(password_file()))
        print(f'export {API_VARIABLE}={prefect_api()} {CLIENT_PASSWORD_VARIABLE}="$(cat {path})"')
        print(f"to log in, cat {path}: Prefect takes the whole line, MLflow {USER} and what is behind the colon")


def page_of(server: Server, healthy: bool) -> str:
    """The address to open in a browser, or the worker's work pool.

    The bare address of MLflow's server opens a page about traces, which are none of this project's. So the address of
    the table of runs is given, if the server is healthy. The experiment is made if there is none.
    """
    if server.port is None:
        return f"work pool {POOL}"
    if server.name != "mlflow" or not healthy:
        return server.url
    return server.url + runs_path(connect()[1])


def down() -> None:
    """Stop what is up. The worker stops first, so that it can report the end of its runs to Prefect's server."""
    for server in reversed(servers()):
        stop(server)


def new_mlflow_users() -> dict[str, str]:
    """Delete MLflow's database of users, and return the environment in which MLflow makes it anew with one user.

    MLflow reads the password from the environment only for a user that is not yet in the database. `FAIL_CLOSED` makes
    it refuse every route that it has no rule for. The secret key protects forms in the browser, so each start may have
    another key.
    """
    MLFLOW_USERS.unlink(missing_ok=True)
    settings = MLFLOW_USERS.with_suffix(".ini")
    write_bytes(settings, MLFLOW_SETTINGS.encode())
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": credentials().partition(":")[2],
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def start(server: Server, environment: Mapping[str, str] = MappingProxyType({})) -> None:
    """Start a server in a session of its own, with `environment` added to ours. A server that is up is left alone."""
    if server.process() is not None:
        return
    SERVERS_FOLDER.mkdir(parents=True, exist_ok=True)
    with open(server.log, "ab") as log:
        child = subprocess.Popen(
            server.command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server.pid_file.write_text(f"{child.pid} {psutil.Process(child.pid).create_time()}", encoding="utf-8")


def stop(server: Server) -> None:
    """Stop a server if it is up, with all flows that the worker has started.

    Its session gets TERM, and KILL if it still runs when its time is over. Then the processes below it that are still
    there get as long.
    """
    process = server.process()
    server.pid_file.unlink(missing_ok=True)
    if process is None:
        return
    seconds = FLOW_STOP_SECONDS if server.port is None else STOP_SECONDS
    below = process.children(recursive=True)
    end_processes([process], seconds, whole_sessions=True)
    _end_survivors(below, process.pid, seconds)
    print(f"{server.name}: stopped")


def _end_survivors(processes: Sequence[psutil.Process], session: int, seconds: float) -> None:
    """Wait for processes whose parent has got TERM with all of its `session`, and KILL them after so many seconds.

    A worker may end before its flows do. A flow that has a session of its own gets TERM here; its stages do not, since
    the flow ends them.
    """
    processes = [process for process in processes if process.is_running()]
    pids = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) != session and process.ppid() not in pids:
                process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def await_health(server: Server, since: int = 0) -> None:
    """Wait until the server is healthy.

    Raises UserError if it takes another password or none. If it ends or takes too long, the error has the reason that
    its log tells behind the first `since` bytes, which earlier starts have written.
    """
    deadline = time.monotonic() + START_SECONDS
    while not server.healthy():
        server.refuse_other_password()
        if server.process() is None or time.monotonic() > deadline:
            said = server.log.read_bytes()[since:].decode(errors="replace")
            reason = reason_in_output(said.splitlines()) or "no output"
            raise UserError(f"{server.name} did not start ({reason}): see {server.log}")
        time.sleep(0.3)


def refuse_busy_port(server: Server) -> None:
    """Raises UserError if another program listens on the server's port, with that program's name if it can be seen."""
    with socket.socket() as probe:
        # The servers set this option too: it makes a port usable while its last connections are still closing.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, server.port))
        except OSError:
            program, other = _listening_program(server.port), server.port + 1
            raise UserError(
                f"port {server.port} is in use by {program}: set {server.variable}={other}, or stop it"
            ) from None


def _listening_program(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:  # macOS shows the connections of other users to root only
        pass
    return "another program"


def _python_module(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _run_quietly(command: Sequence[str]) -> None:
    """Run a command without its output. Raises UserError, with the output on one line, if the command fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        output = " ".join((done.stdout + done.stderr).split())
        raise UserError(f"{' '.join(command[2:])} failed: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `up`, `status` or `down`, and return the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.servers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = {"up": up, "status": status, "down": down}
    parser.add_argument("action", choices=actions)
    try:
        actions[parser.parse_args(argv).action]()
    except UserError as error:
        return complain(error, BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The local servers: `python -m flows.servers up`, `status`, `down`.

Prefect's server with a work pool, the deployments and a process worker, and MLflow's UI, all on 127.0.0.1 only. All
accounts of the host reach that address, so both servers ask for the password in `.sana15/password`
(`flows.entry.password`). Each runs in a session of its own, with its pid and its log in `.sana15/servers/`.
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
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType

import psutil

from flows.entry.own_servers import FOLDER, HOST, listens, recorded_process
from flows.entry.password import (
    API_VARIABLE,
    CLIENT_VARIABLE,
    PASSWORD,
    SERVER_VARIABLE,
    USER,
    credentials,
    password_file,
)
from tasks.system.errors import UserError
from tasks.system.files import write_bytes
from tasks.system.processes import BAD_INPUT, complain, end_processes
from tasks.tracking.mlflow_store import connect, tracking_uri

POOL = "sana15"
POOL_TEMPLATE = Path(__file__).parent / "places" / "templates" / "process.json"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy that the environment names would learn the password."""
GUARDED = (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED)
"""The answers to our password and to none of a server that is well."""
MLFLOW_USERS = FOLDER / "mlflow_users.db"
MLFLOW_SETTINGS = f"""[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{MLFLOW_USERS}
auth_cache_ttl_seconds = 300
"""
"""MLflow's settings for users. A password is a hash that takes long to compute, and a page asks dozens of times."""


@dataclass(frozen=True)
class Server:
    """A process that stays.

    One that listens has a port, the variable that chooses it, and a path that only the password opens.
    """

    name: str
    command: tuple[str, ...]
    port: int | None = None
    variable: str = ""
    health: str = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file that it writes to."""
        return FOLDER / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """The file with its pid and the time it began."""
        return FOLDER / f"{self.name}.pid"

    def process(self) -> psutil.Process | None:
        """Its process, if it was started here and lives."""
        return recorded_process(self.pid_file)

    def healthy(self) -> bool:
        """Whether it answers to our password alone; one without a port is well while it lives."""
        if self.port is None:
            return self.process() is not None
        return (self._answer(credentials()), self._answer()) == GUARDED

    def refuse_other_password(self) -> None:
        """Raises UserError if it answers to another password than ours, or to none, as it was begun with that."""
        for given, wrong, fault in (
            (credentials(), HTTPStatus.UNAUTHORIZED, f"does not take the password in {PASSWORD}"),
            (None, HTTPStatus.OK, "asks for no password"),
        ):
            if self._answer(given) == wrong:
                raise UserError(f"{self.name} {fault}: run make down, then make up")

    def _answer(self, given: str | None = None) -> int | None:
        """The HTTP status that it answers with, to these credentials or to none; None if it does not answer.

        Another account's program that has the port is not asked: it would learn the password.
        """
        if not listens(self.process(), self.port):
            return None
        request = urllib.request.Request(self.url + self.health)
        if given is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(given.encode()).decode()}")
        try:
            return DIRECTLY.open(request, timeout=2).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None


def servers() -> tuple[Server, Server, Server]:
    """Prefect's server, MLflow's, and the worker."""
    prefect, mlflow = int(os.environ.get("PREFECT_PORT", "4200")), int(os.environ.get("MLFLOW_PORT", "5000"))
    guarded = ("--app-name", "basic-auth", "--workers", "1")
    return (
        Server(
            "prefect",
            _module("prefect", "server", "start", "--host", HOST, "--port", str(prefect)),
            prefect,
            "PREFECT_PORT",
            "/api/admin/version",
        ),
        Server(
            "mlflow",
            _module("mlflow", "server", "--host", HOST, "--port", str(mlflow), *guarded),
            mlflow,
            "MLFLOW_PORT",
            "/version",
        ),
        Server("worker", _module("prefect", "worker", "start", "--pool", POOL, "--name", "local")),
    )


def prefect_api() -> str:
    """What `PREFECT_API_URL` must be for Prefect's commands to talk to the server."""
    return f"{servers()[0].url}/api"


def up() -> None:
    """Start what is not up, deploy the flow, and return when all of it answers. Raises UserError naming a busy port."""
    prefect, mlflow, worker = servers()
    for server in (prefect, mlflow):
        if server.process() is None:
            refuse_busy_port(server)
    connect()  # makes the database, which MLflow's server and a first run would otherwise both begin to
    os.environ |= {API_VARIABLE: prefect_api(), CLIENT_VARIABLE: credentials(), SERVER_VARIABLE: credentials()}
    start(prefect)
    if mlflow.process() is None:
        # the store's address may hold a password of its own
        start(mlflow, new_mlflow_users() | {"MLFLOW_BACKEND_STORE_URI": tracking_uri()})
    for server in (prefect, mlflow):
        await_health(server)
    template = ("--base-job-template", str(POOL_TEMPLATE))
    _quietly(_module("prefect", "work-pool", "create", POOL, "--type", "process", *template, "--overwrite"))
    _quietly(_module("prefect", "--no-prompt", "deploy", "--all"))
    start(worker)
    status()


def status() -> None:
    """Print a line for each server: whether it is up, where, and its log; and the way in, if Prefect's is.

    The password itself is not printed: what is printed may be kept in a log.
    """
    healthy = {server.name: server.healthy() for server in servers()}
    for server in servers():
        where = server.url if server.port else f"work pool {POOL}"
        state = "up  " if healthy[server.name] else "down"
        print(f"{server.name:8} {state} {where:28} log: {server.log}")
    if healthy["prefect"]:
        path = shlex.quote(str(password_file()))
        print(f'export {API_VARIABLE}={prefect_api()} {CLIENT_VARIABLE}="$(cat {path})"')
        print(f"to log in, cat {path}: Prefect takes the whole line, MLflow {USER} and what is behind the colon")


def down() -> None:
    """Stop what is up, the worker first, so that it can end its runs while the server still hears it."""
    for server in reversed(servers()):
        stop(server)


def new_mlflow_users() -> dict[str, str]:
    """Begin MLflow's list of users anew, with the owner alone; returns the environment for its application.

    MLflow takes a password only for a user that is not there yet. A route that it has no rule for is closed to all. The
    secret key is for its forms, so that each start may have another.
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
    """Start a server in a session of its own, with `environment` added to this process's, unless it is up."""
    if server.process() is not None:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
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
    """TERM a server's session, if it is up, and wait; KILL what stays."""
    process = server.process()
    server.pid_file.unlink(missing_ok=True)
    if process is None:
        return
    end_processes([process], STOP_SECONDS, whole_sessions=True)
    print(f"{server.name}: stopped")


def await_health(server: Server) -> None:
    """Return when the server answers to our password alone.

    Raises UserError if it answers to another one, and with the log's last line if it ends or takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not server.healthy():
        server.refuse_other_password()
        if server.process() is None or time.monotonic() > deadline:
            lines = server.log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            raise UserError(f"{server.name} did not start ({last}): see {server.log}")
        time.sleep(0.3)


def refuse_busy_port(server: Server) -> None:
    """Raises UserError if another program listens on the server's port, naming the program where that can be seen."""
    with socket.socket() as probe:
        # as the servers do: a port whose last connections are still closing is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, server.port))
        except OSError:
            other = server.port + 1
            raise UserError(
                f"port {server.port} is in use by {_listener(server.port)}: set {server.variable}={other}, or stop it"
            ) from None


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:  # macOS shows other users' connections to root only
        pass
    return "another program"


def _module(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _quietly(command: Sequence[str]) -> None:
    """Run a command, showing its output only if it fails, as a UserError of one line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        output = " ".join((done.stdout + done.stderr).split())
        raise UserError(f"{' '.join(command[2:])} failed: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `up`, `status` or `down`; returns the exit code: 0 done, 2 bad input."""
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

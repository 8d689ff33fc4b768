"""The local servers: `python -m flows.servers up`, `status`, `down`.

Prefect's server with a work pool, the deployment and a process worker, and MLflow's UI, all on 127.0.0.1 only: neither
asks for a password. Each runs in a session of its own, with its pid and its log in `.sana15/servers/`. `PREFECT_PORT`
and `MLFLOW_PORT` choose other ports.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.terminal import complain
from tasks.errors import UserError
from tasks.layout import STATE
from tasks.mlflow_store import connect, tracking_uri
from tasks.processes import BAD_INPUT

HOST = "127.0.0.1"
FOLDER = STATE / "servers"
POOL = "sana15"
API_VARIABLE = "PREFECT_API_URL"
START_SECONDS = 120.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Server:
    """A process that stays.

    One that listens has a port, the variable that chooses it, and a path that tells its health.
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
        """Its process, if it was started here and lives; a program that has got the same pid since does not count."""
        try:
            pid, began = self.pid_file.read_text(encoding="utf-8").split()
            process = psutil.Process(int(pid))
            alive = process.create_time() == float(began) and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if alive else None

    def healthy(self) -> bool:
        """Whether it answers; one without a port is well while it lives."""
        if self.process() is None:
            return False
        try:
            return self.port is None or urllib.request.urlopen(self.url + self.health, timeout=2).status == 200
        except OSError:
            return False


def servers() -> tuple[Server, Server, Server]:
    """Prefect's server, MLflow's, and the worker."""
    prefect, mlflow = int(os.environ.get("PREFECT_PORT", "4200")), int(os.environ.get("MLFLOW_PORT", "5000"))
    store = ("--backend-store-uri", tracking_uri(), "--workers", "1")
    return (
        Server(
            "prefect",
            _module("prefect", "server", "start", "--host", HOST, "--port", str(prefect)),
            prefect,
            "PREFECT_PORT",
            "/api/health",
        ),
        Server(
            "mlflow",
            _module("mlflow", "server", "--host", HOST, "--port", str(mlflow), *store),
            mlflow,
            "MLFLOW_PORT",
            "/health",
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
    os.environ[API_VARIABLE] = prefect_api()
    for server in (prefect, mlflow):
        start(server)
    for server in (prefect, mlflow):
        await_health(server)
    _quietly(_module("prefect", "work-pool", "create", POOL, "--type", "process", "--overwrite"))
    _quietly(_module("prefect", "--no-prompt", "deploy", "--all"))
    start(worker)
    status()


def status() -> None:
    """Print a line for each server: whether it is up, where, and its log; and how commands find Prefect's, if it is."""
    healthy = {server.name: server.healthy() for server in servers()}
    for server in servers():
        where = server.url if server.port else f"work pool {POOL}"
        state = "up  " if healthy[server.name] else "down"
        print(f"{server.name:8} {state} {where:28} log: {server.log}")
    if healthy["prefect"]:
        print(f"export {API_VARIABLE}={prefect_api()}")


def down() -> None:
    """Stop what is up, the worker first, so that it can end its runs while the server still hears it."""
    for server in reversed(servers()):
        stop(server)


def start(server: Server) -> None:
    """Start a server in a session of its own, unless it is up."""
    if server.process() is not None:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(server.log, "ab") as log:
        child = subprocess.Popen(
            server.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    server.pid_file.write_text(f"{child.pid} {psutil.Process(child.pid).create_time()}", encoding="utf-8")


def stop(server: Server) -> None:
    """TERM a server's session, if it is up, and wait; KILL what stays."""
    process = server.process()
    server.pid_file.unlink(missing_ok=True)
    if process is None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except psutil.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    print(f"{server.name}: stopped")


def await_health(server: Server) -> None:
    """Return when the server answers. Raises UserError with the log's last line if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not server.healthy():
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

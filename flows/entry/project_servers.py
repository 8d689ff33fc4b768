"""The servers that `make up` has started for this project: which process each of them is, and whether it listens."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tasks.system.paths import STATE, main_project

HOST = "127.0.0.1"
SERVERS_FOLDER = STATE / "servers"


def prefect_port() -> int:
    """The port of the Prefect server that `make up` starts: `PREFECT_PORT`, or 4200."""
    return int(os.environ.get("PREFECT_PORT", "4200"))


def is_own_server(url: str) -> bool:
    """Whether `url` is the address of the Prefect server that `make up` has started for this project.

    The answer is no while that server is down, since a program of another account may have taken its port. It is no for
    `localhost` too, since that name may stand for an address on which the server does not listen.
    """
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:
        return False
    return host == HOST and listens(recorded_process(main_project(Path.cwd()) / SERVERS_FOLDER / "prefect.pid"), port)


def mlflow_server() -> str | None:
    """The address of MLflow's server: that of `MLFLOW_TRACKING_URI`, or that of the server that `make up` has started.

    None if the runs go to a database, and no server of this project is up to show them.
    """
    if (uri := os.environ.get("MLFLOW_TRACKING_URI", "")).startswith(("http://", "https://")):
        return uri.rstrip("/")
    ports = listening_ports(recorded_process(main_project(Path.cwd()) / SERVERS_FOLDER / "mlflow.pid"))
    return f"http://{HOST}:{min(ports)}" if ports else None


def recorded_process(pid_file: Path) -> psutil.Process | None:
    """The process that this file records, or None if it has ended.

    The system gives pids to new processes again, so the file records when the process began, and both must agree.
    """
    try:
        pid, began = pid_file.read_text(encoding="utf-8").split()
        process = psutil.Process(int(pid))
        alive = process.create_time() == float(began) and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def listens(process: psutil.Process | None, port: int | None) -> bool:
    """Whether this process or one of its descendants listens on the port."""
    return port in listening_ports(process)


def listening_ports(process: psutil.Process | None) -> set[int]:
    """The ports on which this process and its descendants listen."""
    try:
        every = [process, *process.children(recursive=True)] if process is not None else []
        connections = [one for child in every for one in child.net_connections("tcp")]
    except psutil.Error:
        return set()
    return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}

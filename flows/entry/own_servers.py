"""The servers that `make up` has started for this project: which process each one is, and whether it listens."""

from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tasks.system.paths import STATE, main_project

HOST = "127.0.0.1"
FOLDER = STATE / "servers"


def is_own_server(url: str) -> bool:
    """Whether `url` is the address of the Prefect server that `make up` has started for this project.

    Not where that is down: another account's program may have got its port since. `localhost` may mean an address that
    it does not listen on.
    """
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:
        return False
    return host == HOST and listens(recorded_process(main_project(Path.cwd()) / FOLDER / "prefect.pid"), port)


def recorded_process(pid_file: Path) -> psutil.Process | None:
    """The process that this file tells of, if it lives; a program that has got the same pid since does not count."""
    try:
        pid, began = pid_file.read_text(encoding="utf-8").split()
        process = psutil.Process(int(pid))
        alive = process.create_time() == float(began) and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def listens(process: psutil.Process | None, port: int | None) -> bool:
    """Whether this process, or one that it has begun, listens on the port."""
    try:
        every = [process, *process.children(recursive=True)] if process is not None else []
        listening = [one for child in every for one in child.net_connections("tcp")]
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in listening)

"""Turns what the system and the libraries throw into one line: what is wrong, where, and what to do.

This is the one place that knows such exceptions. It tells them by the names of their classes and imports no library, so
that every command can use it at no cost. An exception that it does not know is a fault of the program. Then there is no
line, and the traceback is shown.
"""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

DOCTOR = "python -m flows.doctor looks over the workspace"
"""The end of a line where one cannot tell from here what is wrong."""
ADVICE = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room below your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "its disk takes no writes: work in a folder of another one",
    errno.EACCES: "give yourself the right to it (ls -ld shows whose it is), or work in a project of your own",
    errno.EPERM: "give yourself the right to it (ls -ld shows whose it is), or work in a project of your own",
    errno.EIO: f"its disk may be failing; {DOCTOR}",
    errno.ESTALE: "its network file system has lost it: mount that again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: end what is not needed",
    errno.ENAMETOOLONG: "work in a folder with a shorter path",
}
"""What to do about an error of the system that no change of the input would mend."""
NEXT_MAKES_ANOTHER = "move it away, and the next start makes another"
DATABASE_TROUBLES = (
    ("database or disk is full", "has no room left: make room on its disk"),
    ("No space left on device", "has no room left: make room on its disk"),
    ("file is not a database", f"is damaged (it is no database of SQLite): {NEXT_MAKES_ANOTHER}"),
    ("disk image is malformed", f"is damaged (its pages do not fit together): {NEXT_MAKES_ANOTHER}"),
    (
        "Can't locate revision identified by",
        f"was made by a newer version than is installed: install that one again (make setup in the code that named "
        f"it), or {NEXT_MAKES_ANOTHER}",
    ),
    ("readonly database", "may not be written: give yourself the right to the file and its folder"),
    ("unable to open database file", "cannot be opened: see that its folder is there and may be written"),
    ("disk I/O error", f"cannot be read or written (disk I/O error): see that its disk is not full; {DOCTOR}"),
    ("database is locked", f"is held by another process: end that; {DOCTOR}"),
    ("no such table", f"lacks a table (it is half made): {NEXT_MAKES_ANOTHER}"),
)
"""What a database says when it cannot be used, each with a line's end. Alembic's words are among SQLite's."""
DATABASE_LIBRARIES = {"sqlite3", "sqlalchemy", "aiosqlite", "alembic", "mlflow"}
HTTP_LIBRARIES = {"httpx", "httpcore", "requests", "urllib3"}
DVC_LIBRARIES = {"dvc", "dvc_data", "dvc_objects"}
LIBRARIES = DATABASE_LIBRARIES | HTTP_LIBRARIES | DVC_LIBRARIES | {"prefect", "anyio", "safetensors", "builtins"}
"""The packages whose exceptions may hide another one that was thrown before them."""
OWN_CODE = {"flows", "tasks", "model", "kernels"}
"""The packages whose exceptions have a line of their own."""
RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
"""How libraries that are written in Rust, such as safetensors, end the message of an error of the system."""
THROWN = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*")
"""A line that names an exception, as the last line of a traceback does."""
LITTLE_ROOM = 2**20
"""A disk with fewer free bytes is called full."""


def line_of(error: BaseException) -> str | None:
    """What is wrong, where, and what to do, on one line. None for an exception that is not known here.

    Where an exception was thrown because of another one, the first that is known gives the line. Errors of the system
    come before those of databases, of servers and of DVC.
    """
    if _package(error) in OWN_CODE:
        return None
    every = list(_with_causes(error))
    for describe in (_system_line, _database_line, _server_line, _dvc_line):
        for one in every:
            if line := describe(one):
                return " ".join(line.split())
    return None


def blames_a_server(error: BaseException) -> bool:
    """Whether the line of this exception is about a server that does not answer, or not as it should."""
    every = list(_with_causes(error))
    earlier = (describe(one) for describe in (_system_line, _database_line) for one in every)
    return not any(earlier) and any(_server_line(one) for one in every)


def database_trouble(text: str) -> str | None:
    """What is wrong with a database whose library or server says this, and what to do. None if it says nothing of it.

    The words are to follow the database's name: `is damaged (...): move it away, ...`.
    """
    return next((trouble for words, trouble in DATABASE_TROUBLES if words in text), None)


def reason_in_output(lines: Sequence[str], database: str = "") -> str:
    """Why a server has failed that has printed these lines. An empty text if it has printed nothing.

    That is what is wrong with its `database`, or the last exception, or the last line.
    """
    if trouble := database_trouble("\n".join(lines)):
        return " ".join(f"its database {database} {trouble}".split())
    said = [line.strip() for line in lines if line.strip()]
    thrown = [line for line in said if THROWN.match(line)]
    return " ".join((thrown or said or [""])[-1].split())


def show_known_errors_in_a_line() -> None:
    """Let an exception that nobody catches end this process with one line, if it is known here. The exit code is 1."""

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if (line := line_of(error)) is None:
            sys.__excepthook__(kind, error, traceback)
        else:
            print(f"sana15: {line}", file=sys.stderr, flush=True)

    sys.excepthook = show


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, those of its group, and those that led to it.

    What was being handled when it was thrown counts only where a library throws. In our own code a mistake in an
    `except` block would otherwise be hidden.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += getattr(one, "exceptions", ())
        if one.__cause__ is not None:
            waiting.append(one.__cause__)
        elif one.__context__ is not None and not one.__suppress_context__ and _package(one) in LIBRARIES - {"builtins"}:
            waiting.append(one.__context__)


def _system_line(error: BaseException) -> str | None:
    """The line of an error of the system, such as a full disk."""
    number, path = None, ""
    if isinstance(error, OSError):
        number, path = error.errno, _path_of(error)
    elif found := RUST_ERRNO.search(str(error)):
        number = int(found[1])
    if number not in ADVICE:
        return None
    if not path:
        full = full_places() if number == errno.ENOSPC else []
        path = ", ".join(map(str, full)) or f"a file (working in {Path.cwd()})"
    return f"{path}: {os.strerror(number)}: {ADVICE[number]}"


def _path_of(error: OSError) -> str:
    """The path that an error of the system names, or an empty text."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, os.PathLike))]
    return " and ".join(os.fsdecode(name) for name in names)


def full_places() -> list[Path]:
    """The folders that runs write to whose disks have no room left: the working directory and that of temporary files.

    Where a write fails, the system does not say to which file.
    """
    full = []
    for place in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            if shutil.disk_usage(place).free < LITTLE_ROOM:
                full.append(place)
        except OSError:
            continue
    return full


def _database_line(error: BaseException) -> str | None:
    if _package(error) not in DATABASE_LIBRARIES or (trouble := database_trouble(str(error))) is None:
        return None
    return f"a database {trouble} (python -m flows.doctor says which one)"


def _server_line(error: BaseException) -> str | None:
    """The line of a server that does not answer, or not as it should."""
    if _package(error) not in HTTP_LIBRARIES and type(error).__name__ != "PrefectHTTPStatusError":
        return None
    known = vars(error)  # an attribute of httpx's would raise where an exception has no request
    url = getattr(known.get("_request") or known.get("request"), "url", None)
    server = without_password(str(url)) if url else "a server"
    if (status := getattr(known.get("response"), "status_code", None)) is not None:
        return f"{server} answers with status {status}: see its log, or start it again; {DOCTOR}"
    names = {kind.__name__ for kind in type(error).__mro__}
    if "ProxyError" in names:
        return f"{server} cannot be reached through the proxy of the environment ({error}): add its host to NO_PROXY"
    if names & {"TimeoutException", "Timeout", "TimeoutError"}:
        return f"{server} does not answer in time: see that it is up; {DOCTOR}"
    if names & {"TransportError", "ConnectionError", "NetworkError", "HTTPError"}:
        return f"{server} cannot be reached ({error}): see that it is up and the address right; {DOCTOR}"
    return None


def without_password(url: str) -> str:
    """An address without the user and the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", url)


def _dvc_line(error: BaseException) -> str | None:
    if _package(error) not in DVC_LIBRARIES:
        return None
    said = " ".join(str(error).split()) or type(error).__name__
    return f"DVC says: {said}; {DOCTOR}"

"""What the system and the libraries throw is told in one line with a path or an address and the way out."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import requests
import sqlalchemy
from alembic.util.exc import CommandError
from dvc.config import ConfigError
from mlflow.exceptions import MlflowException
from safetensors import SafetensorError

from tasks.runtime.command_line import bad_input_exits
from tasks.system import error_lines
from tasks.system.error_lines import line_of
from tasks.system.errors import UserError
from tasks.system.files import write_json

PROJECT = Path(__file__).parents[3]
REQUEST = httpx.Request("POST", "http://sana15:secret@head:4200/api/flow_runs")


def statement(fault: str) -> sqlalchemy.exc.OperationalError:
    """What SQLAlchemy throws where SQLite has failed."""
    return sqlalchemy.exc.OperationalError("INSERT INTO runs VALUES (?)", {}, sqlite3.OperationalError(fault))


@pytest.mark.parametrize(
    ("error", "where", "way_out"),
    [
        (OSError(errno.ENOSPC, "full", "outputs/a"), "outputs/a: No space left", "make room on its disk"),
        (OSError(errno.EDQUOT, "full", b"outputs/a"), "outputs/a: Disk quota", "below your quota"),
        (OSError(errno.EROFS, "ro", "results", None, "other"), "results and other: Read-only", "another one"),
        (PermissionError(errno.EACCES, "no", ".sana15"), ".sana15: Permission denied", "ls -ld"),
        (OSError(errno.EIO, "io", "dvc.lock"), "dvc.lock: Input/output error", "flows.doctor"),
        (OSError(errno.EMFILE, "many", "a"), "a: Too many open files", "ulimit -n"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device", "make room"),
        (statement("database or disk is full"), "a database has no room left", "make room on its disk"),
        (statement("database disk image is malformed"), "a database is damaged", "move it away"),
        (sqlite3.DatabaseError("file is not a database"), "a database is damaged", "flows.doctor says which"),
        (CommandError("Can't locate revision identified by '1234'"), "newer version", "move it away"),
        (MlflowException("(sqlite3.OperationalError) attempt to write a readonly database"), "not be written", "right"),
        (httpx.ConnectError("Connection refused", request=REQUEST), "http://head:4200/api/flow_runs", "see that it is"),
        (httpx.ReadTimeout("", request=REQUEST), "http://head:4200/api/flow_runs does not answer in time", "is up"),
        (httpx.ProxyError("407", request=REQUEST), "through the proxy", "NO_PROXY"),
        (
            httpx.HTTPStatusError("500", request=REQUEST, response=httpx.Response(500)),
            "http://head:4200/api/flow_runs answers with status 500",
            "see its log",
        ),
        (
            requests.ConnectionError("refused", request=requests.Request("GET", "http://head:5000/").prepare()),
            "http://head:5000/ cannot be reached",
            "see that it is up",
        ),
        (ConfigError("configuration error -\n   expected a dictionary"), "DVC says: config file error", "doctor"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_thrown_becomes_one_line_with_the_place_and_the_way_out(
    error: Exception, where: str, way_out: str
) -> None:
    line = line_of(error)
    assert line is not None and where in line and way_out in line
    assert "\n" not in line and "secret" not in line


def test_the_cause_that_names_a_path_comes_before_what_a_library_makes_of_it() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "full", ".dvc/cache/ab")
        except OSError as error:
            raise ConfigError("unexpected error") from error
    except ConfigError as error:
        assert (line_of(error) or "").startswith(".dvc/cache/ab: No space left on device")


def test_a_group_of_exceptions_is_searched() -> None:
    group = ExceptionGroup("unhandled errors in a TaskGroup", [httpx.ConnectError("refused", request=REQUEST)])
    assert "http://head:4200" in (line_of(group) or "")


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "no", "a"), UserError("own line")])
def test_a_fault_of_the_program_and_an_error_that_has_its_own_line_get_none(error: Exception) -> None:
    assert line_of(error) is None


def test_a_mistake_while_an_error_is_handled_is_not_hidden_by_that_error() -> None:
    try:
        try:
            raise PermissionError(errno.EACCES, "no", "a")
        except OSError:
            {}["missing"]
    except KeyError as error:
        assert line_of(error) is None


def test_a_write_to_a_full_disk_names_the_folder_whose_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError) as raised:
        full.write(b"x")
    monkeypatch.setattr(error_lines.shutil, "disk_usage", Free)
    assert str(Path.cwd()) in (line_of(raised.value) or "")


class Free:
    """The free bytes of a disk: none below the working directory, and plenty elsewhere."""

    def __init__(self, place: Path) -> None:
        self.free = 0 if place == Path.cwd() else 2**40


def test_a_stage_on_a_full_disk_ends_with_one_line_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited, bad_input_exits("shard"):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
    said = capsys.readouterr().err
    assert exited.value.code == 1 and said.startswith("shard: ") and len(said.splitlines()) == 1
    assert "No space left on device: make room" in said


def test_a_file_that_a_limit_keeps_from_growing_is_named(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_json(tmp_path / "large.json", "x" * 5000)
        except OSError as error:
            os._exit(0 if "large.json: File too large: raise the limit" in (line_of(error) or "") else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_nobody_catches_ends_a_command_with_one_line_if_it_is_known() -> None:
    for thrown, lines in (("PermissionError(13, 'no', '.prefect')", 1), ("KeyError('x')", 3)):
        code = "from tasks.system.error_lines import *\nshow_known_errors_in_a_line()\n" + f"raise {thrown}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PROJECT)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == lines, done.stderr

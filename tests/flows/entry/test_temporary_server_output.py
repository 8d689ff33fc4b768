"""The last words of Prefect's temporary server become the reason of a failure."""

import io

import pytest

from flows.entry import temporary_server_output


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Traceback (most recent call last):\n"
            '  File "x.py", line 1\n'
            "sqlalchemy.exc.DatabaseError: (sqlite3.DatabaseError) file is not a database\n"
            "(Background on this error at: https://sqlalche.me/e/20/4xp6)\n\n"
            "Application startup failed. Exiting.\n",
            "its database runs.db is damaged (it is no database of SQLite): move it away",
        ),
        ("alembic.util.exc.CommandError: Can't locate revision identified by 'ffff'\n", "made by a newer version"),
        (
            "Traceback\n  File\nValueError: no such setting\nApplication startup failed. Exiting.\n",
            "ValueError: no such",
        ),
        ("Killed\n\n", "Killed"),
        ("", ""),
    ],
)
def test_the_reason_is_what_is_wrong_with_the_database_or_the_last_exception_or_line(said: str, reason: str) -> None:
    temporary_server_output.keep(io.StringIO(said)).join()
    found = temporary_server_output.reason("runs.db")
    assert reason in found and "\n" not in found and bool(found) == bool(reason)


def test_a_server_that_fails_for_ever_takes_no_more_memory() -> None:
    temporary_server_output.keep(io.StringIO("line\n" * 100_000)).join()
    assert len(temporary_server_output._lines) == temporary_server_output.KEPT_LINES


def test_a_port_that_another_program_took_is_told_from_other_faults() -> None:
    said = "[Errno 98] error while attempting to bind on address ('127.0.0.1', 8424): address already in use\n"
    for text, taken in ((said, True), ("ValueError: no\n", False)):
        temporary_server_output.keep(io.StringIO(text)).join()
        assert temporary_server_output.port_was_taken() is taken

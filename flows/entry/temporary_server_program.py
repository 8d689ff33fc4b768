"""The process of Prefect's temporary server: `python -m flows.entry.temporary_server_program PORT`.

It ends when the process that started it is gone (`tasks.system.processes.die_with_parent`).

Prefect makes its SQLite database by many migrations. The database is made under another name and gets its own when it
is whole, so that a kill never leaves half of it.
"""

import flows.entry.prefect_environment  # noqa: F401

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from prefect.server.database import provide_database_interface
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, get_current_settings, temporary_settings

from flows.entry.project_servers import HOST
from tasks.system.file_locks import exclusive_lock
from tasks.system.processes import die_with_parent

SQLITE = "sqlite+aiosqlite:///"
WAIT_SECONDS = 300.0
"""How long a server waits for another one that makes the database."""


def make_database() -> None:
    """Make Prefect's SQLite database if there is none. A database of another kind is left to Prefect."""
    url = get_current_settings().server.database.connection_url
    address = url.get_secret_value() if url is not None else ""
    path = Path(address.removeprefix(SQLITE))
    if not address.startswith(SQLITE) or not path.is_absolute() or path.exists():
        return
    with exclusive_lock(path.with_name(f"{path.name}.lock"), f"{path} is being made", WAIT_SECONDS):
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            for leftover in path.parent.glob(f"{unfinished.name}*"):  # also SQLite's journal
                leftover.unlink()
            _migrate_in_child(f"{SQLITE}{unfinished}")
            os.replace(unfinished, path)


def _migrate_in_child(url: str) -> None:
    """Make the database at `url` in a child process, since Prefect goes on with the first database of a process."""
    if (pid := os.fork()) == 0:
        try:
            with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}):
                asyncio.run(_migrate())
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(code)


async def _migrate() -> None:
    database = provide_database_interface()
    await database.create_db()
    # SQLite takes its write-ahead log into the file when the last connection is closed
    await (await database.engine()).dispose()


def main(argv: Sequence[str]) -> None:
    """Serve on the port until TERM comes. Exits with 3, as uvicorn does, if the port is taken."""
    die_with_parent()
    make_database()
    app = "prefect.server.api.server:create_app"
    uvicorn.run(app, factory=True, host=HOST, port=int(argv[0]), log_level="error", lifespan="on")


if __name__ == "__main__":
    main(sys.argv[1:])

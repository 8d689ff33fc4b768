"""Looks at the SQLite databases: whether SQLite finds them whole, and whether the installed versions know them.

They are opened in a way that leaves no trace. Where a write-ahead log lies beside a database, SQLite must read that too
and may make its index anew, as any reader does.
"""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from flows.doctor.finding import Finding, fine, shown
from flows.entry.project_servers import SERVERS_FOLDER
from tasks.system.error_lines import NEXT_MAKES_ANOTHER, database_trouble
from tasks.system.paths import JUDGE_ANSWERS, main_project
from tasks.system.readable_digits import BYTES, scaled
from tasks.tracking.mlflow_database import ALEMBIC
from tasks.tracking.mlflow_store import DATABASE

PREFECT_DATABASE = "prefect.db"
MIGRATIONS = {
    DATABASE: ("mlflow", "store/db_migrations/versions"),
    PREFECT_DATABASE: ("prefect", "server/database/_migrations/versions/sqlite"),
}
"""For a database: the package that makes it, and where that package's migrations lie."""
REVISION = re.compile(r"^(?P<down>down_)?revision\b[^=\n]*=(?P<names>.*)$", re.MULTILINE)
"""The line of a migration that names it, or the ones before it: two of them where branches meet."""
QUOTED = re.compile(r"[\"'](\w+)[\"']")


def look(project: Path) -> Iterator[Finding]:
    """A line for each database that is there."""
    here = main_project(project)
    home = Path(os.environ.get("PREFECT_HOME", here / ".prefect")).expanduser()
    places = (here / DATABASE, home / PREFECT_DATABASE, here / JUDGE_ANSWERS, here / SERVERS_FOLDER / "mlflow_users.db")
    there = [path for path in places if path.exists()]
    for path in there:
        yield state_of(path, shown(path, project))
    if not there:
        yield fine("there is none yet: the first run makes them")


def state_of(path: Path, name: str) -> Finding:
    """Whether a database is whole, and whether it is of the installed version."""
    if path.stat().st_size == 0:
        return fine(f"{name} is empty: the next start fills it")
    try:
        with closing(sqlite3.connect(address(path), uri=True)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                return Finding(f"{name} is damaged ({' '.join(found.split())}): {NEXT_MAKES_ANOTHER}; {rescue(path)}")
            tables = {table for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            rows = database.execute(f"SELECT version_num FROM {ALEMBIC}").fetchall() if ALEMBIC in tables else []
    except sqlite3.Error as error:
        if "locked" in str(error):
            return fine(f"{name} is being written by another process, so that it cannot be looked at now")
        return Finding(f"{name} {database_trouble(str(error)) or f'cannot be read ({error})'}; {rescue(path)}")
    return version_of(path, name, {version for (version,) in rows})


def address(path: Path) -> str:
    """The address by which SQLite opens a database for reading and makes no file beside it if it can."""
    log = path.with_name(f"{path.name}-wal")
    unread = log.exists() and log.stat().st_size > 0
    return f"{path.absolute().as_uri()}?mode=ro{'' if unread else '&immutable=1'}"


def rescue(path: Path) -> str:
    """How to save what a damaged database holds."""
    return f"sqlite3 {path.name} .recover saves what it holds"


def version_of(path: Path, name: str, versions: set[str]) -> Finding:
    """Whether the migrations that a database has are those of the installed package."""
    size = scaled(path.stat().st_size, BYTES)
    if path.name not in MIGRATIONS:
        return fine(f"{name} is whole ({size})")
    package, _ = MIGRATIONS[path.name]
    known, newest = migrations(*MIGRATIONS[path.name])
    if versions - known:
        return Finding(
            f"{name} was made by a newer {package} than is installed: install that one again (make setup in the code "
            f"that named it), or {NEXT_MAKES_ANOTHER}"
        )
    if versions != newest:
        return fine(f"{name} is whole ({size}), and of an older or unfinished version: the next start says more")
    return fine(f"{name} is whole ({size})")


def migrations(package: str, folder: str) -> tuple[set[str], set[str]]:
    """The migrations that the installed package knows, and the newest of them, which no other one follows."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return set(), set()
    texts = [path.read_text(encoding="utf-8") for path in (Path(spec.origin).parent / folder).glob("*.py")]
    lines = [(bool(down), QUOTED.findall(names)) for text in texts for down, names in REVISION.findall(text)]
    every = {name for down, names in lines if not down for name in names}
    return every, every - {name for down, names in lines if down for name in names}

"""Makes the project's own SQLite database of MLflow, and looks whether one that lies there is whole.

MLflow makes a database by some fifty migrations, which take seconds and are no single transaction. One that a kill
leaves half made it refuses for good. So the database is made under another name, and gets its own when it is whole.
"""

import logging
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.files import private_file, private_folder
from tasks.system.paths import STATE

UNFINISHED = "mlflow.db.unfinished"
"""The name of a database that is being made, in the folder `STATE` beside it."""
SET_ASIDE = "mlflow.db.half_made"
"""The name of a half-made database that another has replaced, in the same folder."""
LOCK = "mlflow.lock"
WAIT_SECONDS = 300.0
"""How long a process waits for another one that makes the database."""

ALEMBIC = "alembic_version"
"""The table in which the migrations note how far they have come."""

_looked_at: set[tuple[Path, int]] = set()
"""The databases that this process has found whole, each with its inode."""


def prepare_database(path: Path) -> None:
    """Make the SQLite file `path` MLflow's database, unless it is one already. Only its owner may read it.

    A database that a kill has left half made holds no run. It is set aside with a line, and a new one is made. Raises
    UserError if the database is damaged. To find that out, each process reads it once.
    """
    if not _is_known(path):
        _make_or_check(path)
        _looked_at.add((path, path.stat().st_ino))
    private_file(path)


def _make_or_check(path: Path) -> None:
    state = path.parent / STATE
    private_folder(state)
    with exclusive_lock(state / LOCK, f"{path} is being made", WAIT_SECONDS):
        if path.exists() and path.stat().st_size > 0 and not _is_whole(path):
            os.replace(path, state / SET_ASIDE)
            line = f"sana15: {path} was half made and held no run: a new one takes its place, the old one is"
            print(f"{line} {state / SET_ASIDE}", file=sys.stderr, flush=True)
        if not path.exists() or path.stat().st_size == 0:
            _make(path, state / UNFINISHED)


def _is_known(path: Path) -> bool:
    try:
        return (path, path.stat().st_ino) in _looked_at
    except FileNotFoundError:
        return False


def _make(path: Path, unfinished: Path) -> None:
    """Make the database under the name `unfinished`, and rename it to `path`."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    for leftover in unfinished.parent.glob(f"{unfinished.name}*"):  # also SQLite's journal
        leftover.unlink()
    private_file(unfinished)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store").setLevel(logging.ERROR)
    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    os.replace(unfinished, path)


def _is_whole(path: Path) -> bool:
    """Whether the database has all migrations, or holds a run. One with neither is half made.

    A database with runs that lacks migrations is one of an older MLflow, which says itself how to bring it up to date.
    Raises UserError if SQLite finds the file damaged.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "runs" in tables and database.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                return True
            versions = set(database.execute("SELECT version_num FROM alembic_version")) if ALEMBIC in tables else set()
    except sqlite3.OperationalError:
        return True  # it is locked or cannot be opened, which says nothing about what it holds; MLflow will say more
    except sqlite3.DatabaseError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged ({reason}): move it away, and the next run makes another and sends what waits; "
            f"sqlite3 {path.name} .recover saves what it holds"
        ) from None
    return versions == {(_newest_migration(),)}


def _newest_migration() -> str:
    """The name of the last migration of the installed MLflow."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return _get_latest_schema_revision()

"""Refuses SQLite on a network file system where points on several hosts would write to it.

SQLite's locks cannot be relied on there, and its files have been corrupted (sqlite.org/faq.html, question 5).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from tasks.system.errors import UserError
from tasks.tracking.mlflow_store import URI_VARIABLE, tracking_uri

NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "gluster",
    "fuse.",
    "9p",
    "afs",
    "panfs",
    "wekafs",
)
"""The names of kinds of file systems that several hosts can mount begin with these."""
PREFECT_VARIABLES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")


def refuse_sqlite_over_network(where: str) -> None:
    """Raises UserError if runs in the place `where` would share a SQLite file on a network file system."""
    for what, path, hint in _sqlite_files():
        if (kind := network_file_system(path)) is not None:
            raise UserError(f"where is {where}, and {what} is SQLite on {kind} ({path}), which loses writes: {hint}")


def _sqlite_files() -> Iterator[tuple[str, Path, str]]:
    """For each SQLite file that runs would share: what it holds, its path, and what to set instead."""
    if (path := _sqlite_path(tracking_uri())) is not None:
        yield "MLflow's store", path, f"set {URI_VARIABLE} to a server (docs/cluster.md)"
    for variable in PREFECT_VARIABLES:
        if (path := _sqlite_path(os.environ.get(variable, ""))) is not None:
            yield "Prefect's database", path, f"set {variable} to PostgreSQL (docs/cluster.md)"


def _sqlite_path(uri: str) -> Path | None:
    """The file that `sqlite:///...` or `sqlite+aiosqlite:///...` names. None for any other address."""
    scheme, _, path = uri.partition(":///")
    return Path(path).absolute() if scheme.partition("+")[0] == "sqlite" and path else None


def network_file_system(path: Path) -> str | None:
    """The kind of the file system in which `path` lies or would lie, if other hosts can mount it. Otherwise None."""
    real = path.resolve()
    mounts = psutil.disk_partitions(all=True)
    around = [one for one in mounts if real.is_relative_to(one.mountpoint)]
    # If several file systems are mounted on one folder, the last one hides the others.
    innermost = max(enumerate(around), key=lambda pair: (len(Path(pair[1].mountpoint).parts), pair[0]), default=None)
    kind = innermost[1].fstype if innermost is not None else ""
    return kind if kind.startswith(NETWORK_FILE_SYSTEMS) else None

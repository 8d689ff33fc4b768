"""Reports on their way to MLflow: one file of JSON lines for each run, and beside it how much of it has been sent.

Whoever opens a spool (a stage that is run by itself, or the flow for its stages) holds its lock for as long as the run
goes on, sends it and ends it; a stage under the flow joins the spool that the flow opened. A spool whose lock is free
was left by a process that died. It is deleted when all of it has been sent.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tasks.system import paths
from tasks.system.file_locks import lock, try_to_lock
from tasks.system.files import read_json, write_json

SPOOLS = paths.STATE / "spool"
Row = dict[str, Any]


class Spool:
    """One run's reports.

    The first row names the run: `name`, a `key` that is unique to it, the `parent`'s key or None, and `tags`. Every row
    has its `kind`, and its `time` in milliseconds, which makes it the same row to MLflow if it is sent twice.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file

    @property
    def images(self) -> Path:
        """The folder of copied pictures."""
        return self.path.with_suffix(".images")

    @property
    def header(self) -> Row:
        """The first row."""
        return next(self.rows())[0]

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return any(row["kind"] == "end" for row, _ in self.rows())

    def append(self, kind: str, **row: Any) -> None:
        """Add a row. It outlives this process at once (not a power cut: a report is not worth an fsync)."""
        self._file.write(json.dumps({"kind": kind, "time": int(time.time() * 1000), **row}) + "\n")
        self._file.flush()

    def rows(self, offset: int = 0) -> Iterator[tuple[Row, int]]:
        """Whole rows from byte `offset` on, each with the offset behind it."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield json.loads(line), offset

    def sent(self) -> tuple[int, str | None]:
        """Bytes that have been sent, and the id of the MLflow run that they went to."""
        if not self._mark.exists():
            return 0, None
        mark = read_json(self._mark)
        return mark["offset"], mark["run_id"]

    def mark_sent(self, offset: int, run_id: str) -> None:
        """Remember that everything before `offset` has been sent to `run_id`."""
        write_json(self._mark, {"offset": offset, "run_id": run_id})

    def delete(self) -> None:
        """Remove the spool with its pictures."""
        shutil.rmtree(self.images, ignore_errors=True)
        self._mark.unlink(missing_ok=True)
        self.path.unlink()

    def close(self) -> None:
        """Let go of the spool; what has not been sent stays on disk."""
        self._file.close()

    @property
    def _mark(self) -> Path:
        return self.path.with_suffix(".sent")


def status_after(error: BaseException) -> str:
    """MLflow's status of a run that this ended: an interrupt is no Exception, or one that carries its signal."""
    return "KILLED" if not isinstance(error, Exception) or hasattr(error, "signum") else "FAILED"


def open_spool(folder: Path, name: str, tags: Mapping[str, str], parent: str | None = None) -> Spool:
    """A new, locked spool for a run `name` under the run with key `parent`."""
    folder.mkdir(parents=True, exist_ok=True)
    key, now = uuid.uuid4().hex, time.time_ns()
    path = folder.resolve() / f"{now}.{name}.{key}.jsonl"
    file = open(path, "a", encoding="utf-8")
    lock(file)  # waits, as another process may be looking whether this file was left behind
    spool = Spool(path, file)
    spool.append("run", name=name, key=key, parent=parent, tags=dict(tags))
    return spool


def join_spool(path: Path) -> Spool:
    """A spool that a living process, which goes on sending it, has opened for this one to write to."""
    return Spool(path, open(path, "a", encoding="utf-8"))


def find_spool(folder: Path, key: str) -> Path | None:
    """The file of the run with this key, unless all of it has been sent."""
    return next(folder.glob(f"*.{key}.jsonl"), None)


def claim_spools(folder: Path) -> Iterator[Spool]:
    """The spools that dead processes left in `folder`, each locked in its turn; oldest first, so parents first."""
    for path in sorted(folder.glob("*.jsonl")):
        try:
            file = open(path, "r+", encoding="utf-8")
        except FileNotFoundError:
            continue  # sent and deleted by another process a moment ago
        with file:
            # an empty one is only just being opened
            if try_to_lock(file) and path.exists() and file.seek(0, os.SEEK_END) > 0:
                yield Spool(path, file)

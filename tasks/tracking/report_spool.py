"""Spools keep reports on disk until MLflow has them. A spool is one run's file of JSON lines.

A file beside it says how much of it has been sent. The process that opens a spool (a stage that is run by itself, or
the flow for its stages) has its lock while the run goes on, sends it, and ends it. A stage under the flow joins the
spool that the flow opened. A spool whose lock is free was left behind by a process that died. A spool is deleted when
all of it has been sent.
"""

import json
import os
import re
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
NO_FILE_NAME = re.compile(r"[^\w@.-]")
"""The characters of a run's name that are replaced in the name of its spool's file."""
MAX_NAME = 60
"""A run's name is cut to so many characters in the name of its spool's file. The run in MLflow has the whole name."""
POINT_TAG = "sana15.point"
"""The key of a sweep's point. The point's stages name this key as their parent, since they know no other."""
Row = dict[str, Any]


class Spool:
    """The reports of one run.

    The first row describes the run: its `name`, a unique `key`, its `parent` or None, and its `tags`. The parent is
    named by its key, or by its tag `POINT_TAG`. Every row has a `kind` and a `time` in milliseconds. By its time MLflow
    knows a row that is sent twice.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file

    @property
    def images(self) -> Path:
        """The folder of copied pictures and other files."""
        return self.path.with_suffix(".images")

    @property
    def header(self) -> Row:
        """The first row."""
        return next(self.rows())[0]

    @staticmethod
    def read_header(path: Path) -> Row:
        """The first row of the spool's file at `path`. Raises ValueError if it is not complete."""
        with open(path, encoding="utf-8") as file:
            return json.loads(file.readline())

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return any(row["kind"] == "end" for row, _ in self.rows())

    def append(self, kind: str, **row: Any) -> None:
        """Add a row. It outlives this process, but not a power cut, since a report is not worth an fsync."""
        self._file.write(json.dumps({"kind": kind, "time": int(time.time() * 1000), **row}) + "\n")
        self._file.flush()

    def rows(self, offset: int = 0) -> Iterator[tuple[Row, int]]:
        """The complete rows from byte `offset` on, each with the offset of the next."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield json.loads(line), offset

    def sent(self) -> tuple[int, str | None]:
        """How many bytes have been sent, and the id of the MLflow run that has them (None before the first)."""
        if not self._mark.exists():
            return 0, None
        mark = read_json(self._mark)
        return mark["offset"], mark["run_id"]

    def mark_sent(self, offset: int, run_id: str) -> None:
        """Note on disk that everything before byte `offset` has been sent to the MLflow run `run_id`."""
        write_json(self._mark, {"offset": offset, "run_id": run_id})

    def delete(self) -> None:
        """Remove the spool with its pictures."""
        shutil.rmtree(self.images, ignore_errors=True)
        self._mark.unlink(missing_ok=True)
        self.path.unlink()

    def append_artifact(self, path: Path) -> None:
        """Add a file, which MLflow will show under its own name. It is copied, since a later run may replace it."""
        self.images.mkdir(exist_ok=True)
        shutil.copyfile(path, self.images / path.name)
        self.append("artifact", file=path.name)

    def close(self) -> None:
        """Close the file and release its lock. Rows that have not been sent stay on disk."""
        self._file.close()

    @property
    def _mark(self) -> Path:
        return self.path.with_suffix(".sent")


def status_after(error: BaseException) -> str:
    """MLflow's status of a run that `error` ended: KILLED after an interrupt, FAILED otherwise.

    An interrupt is no Exception (KeyboardInterrupt, SystemExit), or it has the number of its signal (`Interrupted`).
    """
    return "KILLED" if not isinstance(error, Exception) or hasattr(error, "signum") else "FAILED"


def open_spool(folder: Path, name: str, tags: Mapping[str, str], parent: str | None = None) -> Spool:
    """A new, locked spool for a run `name`, which is nested in the run `parent`."""
    folder.mkdir(parents=True, exist_ok=True)
    key, now = uuid.uuid4().hex, time.time_ns()
    path = folder.resolve() / f"{now}.{NO_FILE_NAME.sub('_', name)[:MAX_NAME]}.{key}.jsonl"
    file = open(path, "a", encoding="utf-8")
    lock(file)  # waits, as another process may be looking whether this file was left behind
    spool = Spool(path, file)
    spool.append("run", name=name, key=key, parent=parent, tags=dict(tags))
    return spool


def join_spool(path: Path) -> Spool:
    """The spool at `path`, to write to. Another process has opened it and goes on sending it."""
    return Spool(path, open(path, "a", encoding="utf-8"))


def find_spool(folder: Path, parent: str) -> Path | None:
    """The file of the run that `parent` names, by its key or as a sweep's point. None if all of it has been sent."""
    for path in folder.glob("*.jsonl"):
        try:
            header = Spool.read_header(path)
        except (FileNotFoundError, ValueError):
            continue  # sent and deleted by another process a moment ago, or still empty
        if parent in (header["key"], header["tags"].get(POINT_TAG)):
            return path
    return None


def claim_spools(folder: Path) -> Iterator[Spool]:
    """The spools that dead processes left in `folder`, each locked in its turn. The oldest, so parents, come first."""
    for path in sorted(folder.glob("*.jsonl")):
        try:
            file = open(path, "r+", encoding="utf-8")
        except FileNotFoundError:
            continue  # sent and deleted by another process a moment ago
        with file:
            # an empty file is just being opened by a living process
            if try_to_lock(file) and path.exists() and file.seek(0, os.SEEK_END) > 0:
                yield Spool(path, file)

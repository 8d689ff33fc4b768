"""Keeps `dvc.lock` whole: it is replaced in one step, and one that is damaged gives way to its last good copy.

DVC itself writes `dvc.lock` in place. A process that is killed meanwhile leaves a truncated file, which DVC refuses
from then on. Therefore the flow writes the file itself, in the very bytes that DVC would write. `dvc repro` still
writes in place. So the flow keeps a copy of the last `dvc.lock` that it found or wrote whole. Stages that were finished
after that copy come out of DVC's run cache, where DVC notes a stage before it writes `dvc.lock`.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.stage import Stage as DvcStage
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dumps_yaml, parse_yaml, parse_yaml_for_update
from voluptuous import Invalid

from tasks.system.files import write_bytes
from tasks.system.paths import STATE

DVC_LOCK_FILE = "dvc.lock"
LAST_GOOD = STATE / DVC_LOCK_FILE
"""The copy of the last whole `dvc.lock` of a workspace."""
DAMAGED = STATE / "dvc.lock.damaged"
"""Where a damaged `dvc.lock` is kept, for a person to look at."""
RWLOCK = Path(".dvc/tmp/rwlock")
"""DVC's list of the files that its running processes read and write. DVC writes it in place too."""


def write_entry(root: Path, stage: DvcStage) -> None:
    """Write the stage's entry into `dvc.lock` as DVC does, but durably and in one step.

    Raises DvcException if `dvc.lock` cannot be read.
    """
    path = root / DVC_LOCK_FILE
    before = path.read_bytes() if path.exists() else b""
    entries = parse_yaml_for_update(before.decode(), path)
    if not entries:
        entries.update({"schema": "2.0"})
    entries["stages"] = entries.get("stages", {})
    entries["stages"].update(to_lockfile(stage))
    after = dumps_yaml(entries).encode()
    if after != before:
        write_bytes(path, after)
    write_bytes(root / LAST_GOOD, after)


def repair(root: Path) -> None:
    """Put a good `dvc.lock` in place of one that DVC would refuse.

    No other process may build in the workspace `root` meanwhile.
    """
    for leftover in root.glob(f".{DVC_LOCK_FILE}.*.tmp"):  # of a process that was killed in `write_bytes`
        leftover.unlink(missing_ok=True)
    if (root / DVC_LOCK_FILE).exists() and whole_lock(root / DVC_LOCK_FILE) is None:
        set_aside(root)


def set_aside(root: Path) -> None:
    """Move the damaged `dvc.lock` away, and put its last good copy in its place if there is one. A line says so."""
    path = root / DVC_LOCK_FILE
    (root / DAMAGED).parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, root / DAMAGED)
    way = "stages that are built come out of DVC's cache"
    if (good := whole_lock(root / LAST_GOOD)) is not None:
        write_bytes(path, good)
        way = f"its last good copy took its place, and newer {way}"
    print(f"sana15: {path} was damaged and is now {DAMAGED}: {way}", file=sys.stderr, flush=True)


def keep_copy(root: Path) -> None:
    """Copy `dvc.lock`, which DVC has just read without a complaint, for a later `repair`."""
    path, good = root / DVC_LOCK_FILE, root / LAST_GOOD
    if path.exists() and (not good.exists() or good.read_bytes() != path.read_bytes()):
        write_bytes(good, path.read_bytes())


def whole_lock(path: Path) -> bytes | None:
    """The bytes of a `dvc.lock` that fits DVC's schema, or None if the file is missing, empty or damaged."""
    with suppress(FileNotFoundError, UnicodeDecodeError, DvcException, Invalid):
        data = path.read_bytes()
        if entries := parse_yaml(data.decode(), path):
            COMPILED_LOCKFILE_SCHEMA(entries)
            return data
    return None


def remove_damaged_rwlock(root: Path) -> None:
    """Delete DVC's list of files in use if it is not JSON. DVC would refuse to work, and makes a new list.

    No process of DVC that lives can have left it so: each holds a lock while it writes the list.
    """
    path = root / RWLOCK
    try:
        whole = isinstance(json.loads(path.read_bytes()), dict)
    except FileNotFoundError:
        return
    except ValueError:
        whole = False
    if not whole:
        path.unlink()

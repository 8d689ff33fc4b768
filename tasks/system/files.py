"""Writing files so that each is whole or not there, and closing files to other users."""

import csv
import io
import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.system.errors import UserError
from tasks.system.heartbeat import pause


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UserError naming the file if it is missing, cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of more than 4,300 digits, and brackets too deep
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run the stage that writes it") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically, keys in their order. Raises ValueError for NaN and infinity."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV with a header, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, fsync it, and rename it into place.

    Raises OSError, which names `path` also where the system does not say which file it could not write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pause(), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter. If this user already has it, it is closed to others."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    close_to_others(folder)


def private_file(path: Path) -> None:
    """Make a file that only its owner may read. If this user already has it, it is closed to others."""
    path.touch(mode=0o600)
    close_to_others(path)


def close_to_others(path: Path) -> None:
    """Take away other users' rights on a file or folder of this user. That of another user is left as it is."""
    status = path.stat()
    if status.st_uid == os.geteuid() and (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        path.chmod(mode & ~0o077)


def sync_tree(folder: Path) -> None:
    """fsync `folder` and all below it, so that a rename that follows never exposes half-written files."""
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(source: Path, target: Path) -> None:
    """Move the finished folder `source` to `target`, replacing what was there. Both lie on one file system."""
    sync_tree(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    os.replace(source, target)


def move_into(source: Path, target: Path) -> None:
    """Move every file of the finished folder `source` into `target`, each in one step. Other files in `target` stay."""
    sync_tree(source)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)

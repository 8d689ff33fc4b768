"""Files that are either whole or not there: atomic writes, folder manifests with sha256, and their check."""

import csv
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import UserError

MANIFEST = "manifest.json"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in its canonical spelling."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """A JSON file's value. Raises UserError naming the file if it is not there or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it and run the stage that writes it") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically, keys as given. NaN and infinity, which JSON has not, are refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV with a header, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, fsync it, and rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter; one of this user's that others may enter is closed to them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    close_to_others(folder)


def private_file(path: Path) -> None:
    """Make a file, if it is not there, that only its owner may read; one of this user's is closed to others."""
    path.touch(mode=0o600)
    close_to_others(path)


def close_to_others(path: Path) -> None:
    """Take other users' rights on a file or folder of this user's away; one of another user's is left as it is."""
    status = path.stat()
    if status.st_uid == os.geteuid() and (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        path.chmod(mode & ~0o077)


def write_manifest(folder: Path) -> str:
    """List every file of `folder` with its bytes and sha256 in `manifest.json`; returns the manifest's own digest."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }
    write_json(folder / MANIFEST, {"files": files})
    return sha256_file(folder / MANIFEST)


def verify_manifest(folder: Path) -> str:
    """Check every file of `folder` against its manifest; returns the manifest's digest.

    Raises UserError naming the first file that is missing or differs: DVC does not notice a cache object that rotted.
    """
    for name, expected in read_json(folder / MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: run the stage that writes {folder} again")
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise UserError(f"{path} does not match {folder / MANIFEST}: delete {folder} and run its stage again")
    return sha256_file(folder / MANIFEST)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, so that a rename after it never exposes half-written files."""
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

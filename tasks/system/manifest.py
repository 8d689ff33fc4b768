"""The manifest of a folder lists the sha256 and the size in bytes of every file in it, to check them later."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.system.errors import UserError
from tasks.system.files import write_json
from tasks.system.heartbeat import pause

MANIFEST = "manifest.json"
HASHED_AT_ONCE = 2**24
"""Bytes that `write_hashed` writes and hashes at once, during which a thread does not need Python's interpreter."""

Entry = dict[str, Any]
"""What a manifest says of a file: its `bytes` and its `sha256`."""


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with pause(), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value, written with sorted keys and without spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_hashed(path: Path, parts: Iterable[bytes | memoryview]) -> Entry:
    """Write a file of bytes, fsync it, and return its entry in a manifest, without reading it again.

    Other threads run while it hashes and writes. Raises OSError where the file cannot be written.
    """
    digest, count = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for part in map(memoryview, parts):
            for start in range(0, len(part), HASHED_AT_ONCE):
                piece = part[start : start + HASHED_AT_ONCE]
                file.write(piece)
                digest.update(piece)
            count += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": count, "sha256": digest.hexdigest()}


def write_manifest(folder: Path) -> str:
    """Write `manifest.json`, which lists every file of `folder`; returns the sha256 of the manifest itself."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }
    write_entries(folder, files)
    return sha256_file(folder / MANIFEST)


def write_entries(folder: Path, files: Mapping[str, Entry]) -> None:
    """Write `manifest.json` of files whose entries are known."""
    write_json(folder / MANIFEST, {"files": dict(sorted(files.items()))})


def verify_manifest(folder: Path) -> str:
    """Check every file of `folder` against its manifest; returns the sha256 of the manifest itself.

    Raises UserError naming the first file that is missing or differs. `dvc repro` does not notice a damaged file in
    DVC's cache; the flow does, so the way out is through the flow.
    """
    for path in damaged_files(folder):
        way_out = f"delete {folder} and run make run, which takes damaged files out of DVC's cache too"
        if not path.is_file():
            raise UserError(f"{path} is missing: run the stage that writes {folder} again, or {way_out}")
        fault = "is no manifest" if path.name == MANIFEST else f"does not match {folder / MANIFEST}"
        raise UserError(f"{path} {fault}: {way_out}")
    return sha256_file(folder / MANIFEST)


def damaged_files(folder: Path, read: bool = True) -> Iterator[Path]:
    """The files of `folder` that its manifest lists and that are missing or differ, or the manifest if it is none.

    Each file is read when its turn comes, so that a caller who wants only the first reads no more than he must. Without
    `read` only sizes are compared.
    """
    try:
        expected = [
            (str(name), entry["bytes"], entry["sha256"])
            for name, entry in json.loads((folder / MANIFEST).read_bytes())["files"].items()
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        yield folder / MANIFEST
        return
    for name, size, sha256 in expected:
        if not _fits(folder / name, size, sha256 if read else None):
            yield folder / name


def _fits(path: Path, size: int, sha256: str | None) -> bool:
    """Whether the file is there and has this size and digest. A file that the disk cannot read has not."""
    try:
        return path.is_file() and path.stat().st_size == size and (sha256 is None or sha256_file(path) == sha256)
    except OSError:
        return False

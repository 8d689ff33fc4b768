"""The manifest of a folder lists the sha256 and the size in bytes of every file in it, to check them later."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tasks.system.errors import UserError
from tasks.system.files import read_json, write_json

MANIFEST = "manifest.json"


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value, written with sorted keys and without spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_manifest(folder: Path) -> str:
    """Write `manifest.json`, which lists every file of `folder`; returns the sha256 of the manifest itself."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }
    write_json(folder / MANIFEST, {"files": files})
    return sha256_file(folder / MANIFEST)


def verify_manifest(folder: Path) -> str:
    """Check every file of `folder` against its manifest; returns the sha256 of the manifest itself.

    Raises UserError naming the first file that is missing or differs. DVC would not notice a damaged file in its cache.
    """
    for name, expected in read_json(folder / MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: run the stage that writes {folder} again")
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise UserError(f"{path} does not match {folder / MANIFEST}: delete {folder} and run its stage again")
    return sha256_file(folder / MANIFEST)

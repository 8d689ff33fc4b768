"""Published models that params.yaml names: where they lie, and whether their files have the sha256 that is on record.

There are three records. A folder that this project wrote has a `manifest.json`. Beside a download from Hugging Face's
hub, the hub's tools leave `.cache/huggingface/download/NAME.metadata`. In the hub's cache a file is a link to a blob,
whose name is the sha256.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.params.user_files import own_path
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.system.manifest import MANIFEST, sha256_file, sha256_json

HUB_RECORDS = Path(".cache/huggingface/download")
TRANSFORMER = "transformer"
"""The folder of the network in a diffusers pipeline. Where the network is wanted, the other folders are not read."""
SHA256 = re.compile("[0-9a-f]{64}")


def published_path(path: str) -> Path:
    """The published model at a path of params.yaml, checked. Raises UserError naming a missing or damaged file."""
    place = own_path(path)
    for file, digest in recorded_digests(place):
        if not os.path.isfile(file):  # False too for a name that is too long
            raise UserError(f"{file} is missing, though its sha256 is on record: download it again")
        if sha256_file(file) != digest:
            raise UserError(f"{file} is damaged: its sha256 is not the one on record: download it again")
    return place


def content_digest(place: Path) -> str:
    """The sha256, in hex, of the names and contents of a model's files.

    Hidden files, which download tools leave, are left out. Raises UserError if there is no file.
    """
    root, files = _read_files(place)
    if not files:
        raise UserError(f"{place} is no model's file or folder: correct its path in params.yaml")
    names = {path.relative_to(root): path for path in files}
    visible = {name: path for name, path in names.items() if not any(part.startswith(".") for part in name.parts)}
    return sha256_json({name.as_posix(): sha256_file(path) for name, path in visible.items()})


def _read_files(place: Path) -> tuple[Path, list[Path]]:
    """The folder in which a model lies, and its files.

    `place` is one file, a folder, or the folder of a pipeline, of which only the network is taken.
    """
    if place.is_file():
        return place.parent, [place]
    folder = place / TRANSFORMER if (place / TRANSFORMER).is_dir() else place
    return folder, sorted(path for path in folder.rglob("*") if path.is_file())


def recorded_digests(place: Path) -> Iterator[tuple[Path, str]]:
    """Each file at `place` whose sha256 is on record, with that sha256."""
    manifest = place / MANIFEST
    if manifest.is_file():
        try:
            yield from [(place / name, str(facts["sha256"])) for name, facts in read_json(manifest)["files"].items()]
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{manifest} is no manifest: copy the folder again") from None
        return
    for file in _read_files(place)[1]:
        if digest := _hub_digest(file):
            yield file, digest


def _hub_digest(file: Path) -> str | None:
    """The sha256 that the hub's tools noted, if any. They note it for large files, and a git hash for others."""
    if file.is_symlink() and SHA256.fullmatch(file.resolve().name):
        return file.resolve().name
    for root in (file.parent, file.parent.parent):
        note = root / HUB_RECORDS / f"{file.relative_to(root)}.metadata"
        if note.is_file():
            lines = note.read_text(encoding="utf-8", errors="replace").split("\n")  # commit, etag, time
            return lines[1] if len(lines) > 1 and SHA256.fullmatch(lines[1]) else None
    return None


def copy_files(source: Path, out: Path, patterns: Sequence[str]) -> None:
    """Copy the files at the top of `source` that match a pattern. Links are followed: download caches have them."""
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            if path.name != MANIFEST:  # the source's; the stage's output gets a manifest of its own
                shutil.copyfile(path, out / path.name)

"""The user's own files that stages read: pictures, published models, a file of prompts.

DVC does not see them: their path may be null, and a million pictures are too many to read at each look. A listing of
their names, sizes and times stands for them. A stage notes which output it made of which listing, so that the flow can
tell whether an output, be it in place or out of DVC's cache, is of the files as they are now.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from tasks.params.experiment import Params
from tasks.system import paths
from tasks.system.manifest import MANIFEST, sha256_file, sha256_json
from tasks.system.paths import main_project


def own_path(path: str) -> Path:
    """A path of params.yaml; a relative one starts at the project, also in a copy of it under `runs/`."""
    return main_project(Path.cwd()) / path


def paths_of(keys: Iterable[str], params: Params) -> list[str]:
    """The paths that these keys of params.yaml (`shard.path`) name; a key that is null names none."""
    values = (getattr(getattr(params, section), key) for section, key in (name.split(".") for name in keys))
    return [value for value in values if value is not None]


def digests_of(keys: Iterable[str], params: Params) -> dict[str, str]:
    """The digest of the listing of each path that these keys of params.yaml name, by the path."""
    return {path: listing_digest(own_path(path)) for path in paths_of(keys, params)}


def listing_digest(path: Path) -> str:
    """Digest of the names, sizes and times of change of all files in and below `path`, or of the file `path`."""
    below = (os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    files = [str(path)] if path.is_file() else sorted(below)
    return sha256_json([[os.path.relpath(file, path), *_size_and_time(file)] for file in files])


def note_made(inputs: dict[str, str], output: Path) -> None:
    """Note that a finished output was made of these files, given as `digests_of` gives them."""
    if inputs:
        note = _note(inputs, output)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def made_of(inputs: dict[str, str], output: Path) -> bool:
    """Whether its stage noted that an output was made of these files.

    True for a stage that reads no files of the user.
    """
    return not inputs or ((output / MANIFEST).exists() and _note(inputs, output).exists())


def _note(inputs: dict[str, str], output: Path) -> Path:
    """An empty file whose name says it all; copies of the project share them, as they share DVC's cache."""
    facts = {"inputs": inputs, "output": sha256_file(output / MANIFEST)}
    return main_project(Path.cwd()) / paths.STATE / "external" / sha256_json(facts)


def _size_and_time(file: str) -> tuple[int, int]:
    """A link counts as what it points to, unless that is gone."""
    status = os.stat(file) if os.path.exists(file) else os.lstat(file)
    return status.st_size, status.st_mtime_ns

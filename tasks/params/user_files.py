"""The user's own files that stages read: pictures, published models, a file of prompts.

DVC does not track these files, since their path may be null and a million pictures are too many to read each time. A
digest of their names, sizes and times of change stands for them. A stage records from which digest it made an output.
So the flow can tell whether an output, in its place or out of DVC's cache, was made from the files as they are now.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from tasks.params.experiment_params import Params
from tasks.params.params_files import section_values
from tasks.system import paths
from tasks.system.manifest import MANIFEST, sha256_file, sha256_json
from tasks.system.paths import main_project


def own_path(path: str) -> Path:
    """The place of a path in params.yaml. A relative path starts at the main project, also in a copy under `runs/`."""
    return main_project(Path.cwd()) / path


def paths_of(keys: Iterable[str], params: Params) -> list[str]:
    """The values of these keys of params.yaml (`shard.path`), which are paths; a key that is null is left out."""
    values = section_values(params, tuple(keys)).values()
    return [value for value in values if value is not None]


def digests_of(keys: Iterable[str], params: Params) -> dict[str, str]:
    """The `listing_digest` of each path that these keys of params.yaml name, by the path."""
    return {path: listing_digest(own_path(path)) for path in paths_of(keys, params)}


def listing_digest(path: Path) -> str:
    """The digest of the names, sizes and times of change of the files below a folder, or of one file."""
    below = (os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    files = [str(path)] if path.is_file() else sorted(below)
    return sha256_json([[os.path.relpath(file, path), *_size_and_time(file)] for file in files])


def record_user_files(digests: dict[str, str], output: Path) -> None:
    """Record that a finished output was made from these files, given by the result of `digests_of`."""
    if digests:
        record = _record(digests, output)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()


def made_from_user_files(digests: dict[str, str], output: Path) -> bool:
    """Whether a stage recorded that it made an output from these files.

    True for a stage that reads no files of the user.
    """
    return not digests or ((output / MANIFEST).exists() and _record(digests, output).exists())


def _record(digests: dict[str, str], output: Path) -> Path:
    """The record of these files and an output: an empty file whose name is the digest of both.

    All copies of the project keep their records in the main project, as they share DVC's cache.
    """
    facts = {"inputs": digests, "output": sha256_file(output / MANIFEST)}
    return main_project(Path.cwd()) / paths.STATE / "external" / sha256_json(facts)


def _size_and_time(file: str) -> tuple[int, int]:
    """The size in bytes and the time of change of a file. A link counts as its target, unless the target is gone."""
    status = os.stat(file) if os.path.exists(file) else os.lstat(file)
    return status.st_size, status.st_mtime_ns

"""The user's own files that stages read: pictures, published models, a file of prompts.

DVC does not see them: their path may be null, and a million pictures are too many to read at each look. A listing of
their names, sizes and times stands for them. A stage notes which output it made of which listing, so that the flow can
tell whether an output, be it in place or out of DVC's cache, is of the files as they are now.
"""

import os
from pathlib import Path

from tasks import layout
from tasks.files import MANIFEST, sha256_file, sha256_json
from tasks.mlflow_store import main_project
from tasks.params import Params


def own_path(path: str) -> Path:
    """A path of params.yaml; a relative one starts at the project, also in a copy of it under `runs/`."""
    return main_project(Path.cwd()) / path


def external_inputs(stage: str, params: Params) -> dict[str, str]:
    """The paths of the user's own files that a stage reads, with digests of their listings; empty if it reads none."""
    return {path: listing_digest(own_path(path)) for path in own_paths(stage, params) if path is not None}


def own_paths(stage: str, params: Params) -> tuple[str | None, ...]:
    """The params of a stage (`geneval@small`) that name the user's own files."""
    scorer = (params.geneval.mask2former_path, params.geneval.clip_path, params.geneval.prompts)
    match stage.partition("@")[0]:
        case "shard":
            return (params.shard.path,)
        case "autoencoder":
            return (params.autoencoder.path,)
        case "text_encoder":
            return (params.text_encoder.path,)
        case "pretrain":
            return (params.pretrain.path,)
        case "judge":
            return (params.judge.path, *scorer)
        case "geneval" | "controls":
            return scorer
    return ()


def listing_digest(path: Path) -> str:
    """Digest of the names, sizes and times of change of all files in and below `path`, or of the file `path`."""
    below = (os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    files = [str(path)] if path.is_file() else sorted(below)
    return sha256_json([[os.path.relpath(file, path), *_size_and_time(file)] for file in files])


def note_made(inputs: dict[str, str], output: Path) -> None:
    """Note that a finished output was made of these external inputs."""
    if inputs:
        note = _note(inputs, output)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def made_of(inputs: dict[str, str], output: Path) -> bool:
    """Whether an output was made of these external inputs, by its stage's note; of none, every output is."""
    return not inputs or ((output / MANIFEST).exists() and _note(inputs, output).exists())


def _note(inputs: dict[str, str], output: Path) -> Path:
    """An empty file whose name says it all; copies of the project share them, as they share DVC's cache."""
    facts = {"inputs": inputs, "output": sha256_file(output / MANIFEST)}
    return main_project(Path.cwd()) / layout.STATE / "external" / sha256_json(facts)


def _size_and_time(file: str) -> tuple[int, int]:
    """A link counts as what it points to, unless that is gone."""
    status = os.stat(file) if os.path.exists(file) else os.lstat(file)
    return status.st_size, status.st_mtime_ns

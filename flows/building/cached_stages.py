"""Which stages DVC's cache can fill, found out without DVC and before the workspace of a run is written.

DVC keeps a record of each stage that was built, its run cache. A record's name is a digest of the stage's command, the
digests of its dependencies, its params and the paths of its outputs. The record itself has the digests of the outputs.
So a walk along the graph of stages finds the record of each stage from the records of the stages before it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from dvc.config import Config
from dvc.utils import dict_sha256
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree

from tasks.params.params_files import PARAMS_FILE, build_params
from tasks.params.user_files import paths_of
from tasks.stages import Stage, stages_of
from tasks.system.paths import OUTPUTS

DVC_YAML = "dvc.yaml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader that is written in C takes a twentieth of the time, where libyaml is there."""


def stages_in_cache(project: Path, values: Mapping[str, Any]) -> set[str]:
    """The names of the stages that a run of `project` with the params `values` would take out of DVC's cache.

    A stage that reads files of the user is left out, since DVC does not know them, and so are all stages behind it.
    The cache of a remote is not looked at. Raises OSError if the project's files cannot be read.
    """
    params, cache = build_params(dict(values), str(PARAMS_FILE)), cache_folder(project)
    code, digests = code_of_programs(project), dict[str, str]()
    known: dict[str, str] = {}
    found = set()
    for name, stage in stages_of(params).items():
        inputs = {path.as_posix(): known.get(path.as_posix()) for path in stage.inputs}
        if stage.uncached_files or paths_of(stage.user_files, params) or None in inputs.values():
            continue
        for path in (read := code[program_of(stage.command)]):
            digests[path] = digests.get(path) or digest_of(project / path)
        used = inputs | {path: digests[path] for path in read}
        outputs = _recorded_outputs(cache / "runs", record_key(stage, used, values))
        if outputs and all(_holds(cache, digest) for digest in outputs.values()):
            known |= outputs
            found.add(name)
    return found


def cache_folder(project: Path) -> Path:
    """The folder of DVC's cache, which the project shares with its copies."""
    config = Config(str(project / ".dvc"), validate=True)
    return Path(config["cache"].get("dir") or project / ".dvc" / "cache")


def code_of_programs(project: Path) -> dict[str, list[str]]:
    """For each program that stages run (see `program_of`) the files and folders of code that `dvc.yaml` names."""
    entries = yaml.load((project / DVC_YAML).read_text(encoding="utf-8"), LOADER)["stages"].values()
    return {
        program_of(stage["cmd"]): [path for path in stage["deps"] if Path(path).parts[0] != str(OUTPUTS)]
        for stage in (entry.get("do", entry) for entry in entries)
    }


def program_of(command: str) -> str:
    """The command of a stage without the item of its family: `python -m tasks.prune`."""
    return " ".join(command.split()[:3])


def record_key(stage: Stage, digests: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """The name of DVC's records of the stage with these digests of its dependencies, by their path."""
    record = {
        "cmd": stage.command,
        "deps": [{"path": path, "hash": "md5", "md5": digests[path]} for path in sorted(digests)],
        "params": {str(PARAMS_FILE): {key: _value_of(values, key) for key in stage.sections}},
        "outs": sorted(path.as_posix() for path in stage.written),
    }
    return dict_sha256(record)


def digest_of(path: Path) -> str:
    """DVC's digest of a file, or of a folder of code without what Python leaves behind in it."""
    if not path.is_dir():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    tree = Tree()
    for file in _code_below(path):
        tree.add(file.relative_to(path).parts, Meta(), HashInfo("md5", digest_of(file)))
    tree.digest()
    return tree.oid


def _code_below(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix != ".pyc" and "__pycache__" not in file.parts:
            yield file


def _value_of(values: Mapping[str, Any], key: str) -> Any:
    value: Any = values
    for name in key.split("."):
        value = value[name]
    return value


def _recorded_outputs(records: Path, key: str) -> dict[str, str]:
    """The digests of the outputs in the newest record of this name, by their path. Empty if there is no record."""
    files: Sequence[Path] = sorted((records / key[:2] / key).glob("*"), key=lambda file: file.stat().st_mtime)
    record = yaml.load(files[-1].read_text(encoding="utf-8"), LOADER) if files else None
    return {output["path"]: output["md5"] for output in record["outs"]} if isinstance(record, dict) else {}


def _holds(cache: Path, digest: str) -> bool:
    return (cache / "files" / "md5" / digest[:2] / digest[2:]).exists()

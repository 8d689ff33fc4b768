"""The folder that a run works in: the project itself, or, with a profile or overrides, a copy of it under `runs/`.

A copy is a complete workspace: it has the project's code, and its own `params.yaml` and outputs. It shares DVC's cache
with the project and starts with the project's `dvc.lock`, so stages that the overrides do not change come out of the
cache. A run in a copy never writes the project's own outputs, `params.yaml` and `dvc.lock`.
"""

import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import yaml
from configobj import ConfigObj
from dvc.config import Config

from flows.building.durable_dvc_lock import DVC_LOCK_FILE, LAST_GOOD, whole_lock
from flows.building.dvc_settings import read_dvc_settings
from tasks.params.params_files import PARAMS_FILE, PROFILES, apply_overrides, apply_profile, build_params, read_yaml
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.files import private_folder, read_json, write_bytes, write_json
from tasks.system.manifest import sha256_json
from tasks.system.paths import COPIES, PARAMS_ORIGIN, STATE

COPIED_FILES = STATE / "copied.json"
CODE_FOLDERS = ("flows", "tasks", "model", "kernels", "profiles")
"""In these folders a file counts as code even if git does not track it. Elsewhere such files may be of any size."""


def open_workspace(project: Path, profile: str | None, overrides: Mapping[str, Any]) -> Path:
    """The folder to run in: `project` itself, or its copy for this profile and these overrides, brought up to date.

    Raises UserError, before anything is written, if the profile or a key is unknown or a value is out of range.
    """
    values = merged_params(project, profile, overrides)
    folder = workspace_folder(project, profile, overrides)
    if folder != project:
        write_copy(project, folder, values, origin_in_words(profile, overrides))
    return folder


def workspace_folder(project: Path, profile: str | None, overrides: Mapping[str, Any]) -> Path:
    """The path of that folder, which may not be there yet."""
    return project if profile is None and not overrides else project / COPIES / copy_name(profile, overrides)


def write_copy(project: Path, copy: Path, values: Mapping[str, Any], origin: str) -> None:
    """Make `copy` a workspace with the project's code and these params, or bring its code and params up to date.

    `origin` says in words where the params come from. The report shows it.
    """
    private_folder(copy / STATE)
    write_json(copy / PARAMS_ORIGIN, {"origin": origin})
    refresh_code(project, copy)
    write_bytes(copy / PARAMS_FILE, yaml.safe_dump(dict(values), sort_keys=False).encode())
    share_cache(project, copy)
    there = (project / DVC_LOCK_FILE).exists()
    lock = (whole_lock(project / DVC_LOCK_FILE) or whole_lock(project / LAST_GOOD)) if there else None
    if lock is not None and not (copy / DVC_LOCK_FILE).exists():
        write_bytes(copy / DVC_LOCK_FILE, lock)


def merged_params(project: Path, profile: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The project's params with the profile and then the overrides merged in, checked. Raises UserError."""
    return overridden(profile_params(project, profile), profile, overrides)


def profile_params(project: Path, profile: str | None) -> dict[str, Any]:
    """The project's params with the profile merged in, not yet checked."""
    values = read_yaml(project / PARAMS_FILE)
    return values if profile is None else apply_profile(values, profile, project / PROFILES)


def overridden(values: dict[str, Any], profile: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The params `values` of this profile with the overrides merged in, checked. Raises UserError."""
    where = [str(PARAMS_FILE), *([str(PROFILES / f"{profile}.yaml")] if profile is not None else [])]
    if overrides:
        values = apply_overrides(values, dict(overrides), "overrides")
        where.append("overrides")
    build_params(values, " + ".join(where))
    return values


def copy_name(profile: str | None, overrides: Mapping[str, Any]) -> str:
    """The name of the copy's folder: the profile, and a digest of the overrides if there are any."""
    name = re.sub(r"[^\w.-]", "_", profile or "default")
    return f"{name}-{sha256_json(dict(overrides))[:8]}" if overrides else name


def run_name(flow_parameters: Mapping[str, Any]) -> str:
    """What a run of the pipeline with these parameters is called in Prefect and MLflow.

    A point of a sweep has a name from its sweep. Another run has the name of its copy, or `default` without one.
    """
    if point := flow_parameters.get("point"):
        return point["name"]
    return copy_name(flow_parameters.get("profile"), flow_parameters.get("overrides") or {})


def origin_in_words(profile: str | None, overrides: Mapping[str, Any]) -> str:
    """The profile and the overrides as a reader of the report sees them: `smoke, with finetune.steps=200`."""
    changes = ", ".join(f"{key}={value}" for key, value in overrides.items())
    return f"{profile or 'default'}{f', with {changes}' if changes else ''}"


def refresh_code(project: Path, copy: Path) -> None:
    """Copy the code of `project` to `copy`, with uncommitted edits, and delete what the project has deleted since."""
    files, record = code_files(project), copy / COPIED_FILES
    earlier = _copied_files(copy)
    # a process that is killed while it copies must leave nothing that no record names
    write_json(record, sorted({*earlier, *files}))
    for deleted in set(earlier) - set(files):
        (copy / deleted).unlink(missing_ok=True)
    for name in files:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, target)
    write_json(record, files)


def _copied_files(copy: Path) -> list[str]:
    """What the copy has from the project. If the record of that is damaged, it is all files in the folders of code."""
    record = copy / COPIED_FILES
    if not record.exists():
        return []
    with suppress(UserError):
        names = read_json(record)
        if isinstance(names, list) and names and all(_lies_below(name) for name in names):
            return names
    return [name for name in _files_without_git(copy) if name.startswith(tuple(f"{code}/" for code in CODE_FOLDERS))]


def _lies_below(name: object) -> bool:
    """Whether it is the path of a file below the folder that it is relative to."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def code_files(project: Path) -> list[str]:
    """The project's files: those that git tracks, and new ones in the folders of code or beside `params.yaml`.

    `params.yaml` and `dvc.lock` are left out, since each workspace has its own.
    """
    names = _git_files(project, "--cached") if (project / ".git").exists() else set()
    if names:
        new = _git_files(project, "--others", "--exclude-standard")
    else:
        names, new = {".dvc/config", ".dvc/.gitignore"}, set(_files_without_git(project))
    names |= {
        name for name in new if "/" not in name or name.startswith(tuple(f"{folder}/" for folder in CODE_FOLDERS))
    }
    own = {str(PARAMS_FILE), DVC_LOCK_FILE}
    return sorted(name for name in names - own if (project / name).is_file())


def _git_files(project: Path, *which: str) -> set[str]:
    """What `git ls-files` lists; nothing where there is no git, as in a slim image."""
    if shutil.which("git") is None:
        return set()
    listed = subprocess.run(["git", "ls-files", "-z", *which], cwd=project, capture_output=True, check=False)
    return {name for name in os.fsdecode(listed.stdout).split("\0") if name}


def _files_without_git(project: Path) -> Iterator[str]:
    """The files of a project that is not in git: those beside `params.yaml` and those in the folders of code."""
    for folder, folders, files in os.walk(project):
        here = Path(folder).relative_to(project)
        folders[:] = [name for name in folders if name != "__pycache__" and (name in CODE_FOLDERS or here.parts)]
        yield from ((here / name).as_posix() for name in files)


def share_cache(project: Path, copy: Path) -> None:
    """Let the copy's DVC use the project's cache and remotes, and ignore the git repository around the copy.

    DVC's own writer of its config knows ASCII alone, and a project's path may have other letters. DVC reads UTF-8.
    A damaged file of the copy's settings is written anew. Raises UserError if one of the project's is damaged.
    """
    config, file = read_dvc_settings(project), copy / ".dvc" / Config.CONFIG_LOCAL
    try:
        read_dvc_settings(copy)
    except UserError:
        file.unlink(missing_ok=True)
    local = ConfigObj(str(file), encoding="utf-8", default_encoding="utf-8")
    local.merge(
        {"core": {"no_scm": "True"}, "cache": {"dir": config["cache"].get("dir") or str(project / ".dvc" / "cache")}}
    )
    for name, remote in config["remote"].items():
        # The project's settings include .dvc/config.local, which a copy of the tracked files would lack.
        local.merge({f'remote "{name}"': {key: str(value) for key, value in remote.items()}})
    if "remote" in config["core"]:
        local["core"]["remote"] = config["core"]["remote"]
    written = io.BytesIO()
    local.write(written)
    write_bytes(file, written.getvalue())


def hold_workspace(root: Path) -> AbstractContextManager[None]:
    """Hold the workspace for one flow run. Raises UserError if another flow run works in it."""
    return exclusive_lock(root / STATE / "flow.lock", f"{root} is in use")

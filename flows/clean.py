"""Deletes what runs have made, to start over: `python -m flows.clean`, which `make clean` runs.

It lists what goes, with sizes, and what stays, and asks before it deletes anything. It refuses while a run or a server
of this project is alive. A link is deleted, and never what it leads to.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.building.locks_of_runs import FLOW_LOCK, LOCKS, WORKSPACES
from flows.entry.project_servers import SERVERS_FOLDER, recorded_process
from tasks.params.params_files import PARAMS_FILE, read_yaml
from tasks.stages import TABLE
from tasks.system.error_lines import show_known_errors_in_a_line
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT, complain
from tasks.system.file_locks import exclusive_lock, try_to_lock
from tasks.system.paths import COPIES, OUTPUTS, RESULTS, STATE, main_project
from tasks.tracking.mlflow_store import ARTIFACTS, DATABASE

MADE_BY_RUNS = (
    (str(OUTPUTS), "models, pictures and scores"),
    (str(RESULTS), "the report, and the tables of sweeps"),
    (str(COPIES), "copies of the project for profiles, overrides and points of sweeps"),
    (str(STATE), "records, the servers' logs and password"),
    (f"{DATABASE}*", "MLflow's runs"),
    (ARTIFACTS, "MLflow's pictures"),
    ("mlruns", "MLflow's files"),
    (".prefect", "Prefect's runs and logs"),
    (".dvc/cache", "DVC's copies of all outputs"),
    (".dvc/tmp", "DVC's records"),
    ("dvc.lock", "DVC's pins of the last run"),
)
"""What runs make, as patterns below the project, each with what it is."""
STAYING = "the code, params.yaml, profiles/, sweeps/, your pictures and weights, .venv, and DVC's remotes"
CHECKPOINTS = f"{STATE}/state/*"
"""The folders of a workspace from which stages resume that were interrupted."""


@dataclass(frozen=True)
class Found:
    """Something that goes: its path, what it is, and its bytes on disk. A link has none, since its target stays."""

    path: Path
    meaning: str
    size: int


def found_in(project: Path) -> list[Found]:
    """What runs have made in a project. A `dvc.lock` that git tracks is the project's own and is left out."""
    seen: set[tuple[int, int]] = set()
    checkpoints = [path for workspace in WORKSPACES for path in project.glob(workspace + CHECKPOINTS)]
    found = []
    for pattern, meaning in MADE_BY_RUNS:
        for path in sorted(project.glob(pattern)):
            if not (path.name == "dvc.lock" and _git_tracks(path)) and _lies_in(path, project):
                resumable = (
                    ", with checkpoints to resume from" if any(one.is_relative_to(path) for one in checkpoints) else ""
                )
                found.append(Found(path, meaning + resumable, size_of(path, seen)))
    return found


def _lies_in(path: Path, project: Path) -> bool:
    """Whether no folder between the project and `path` is a link, which would lead to another place."""
    return path.parent.resolve() == project.resolve() / path.parent.relative_to(project)


def _git_tracks(path: Path) -> bool:
    if shutil.which("git") is None:
        return False
    command = ["git", "ls-files", "--error-unmatch", path.name]
    return subprocess.run(command, cwd=path.parent, capture_output=True, check=False).returncode == 0


def size_of(path: Path, seen: set[tuple[int, int]]) -> int:
    """The bytes of all files in and below `path`. A file in `seen` is not counted again, and links are not followed.

    DVC may link an output to its copy in the cache, so that both are one file on disk. The function adds to `seen`.
    """
    total = 0
    for file in _files_below(path):
        status = file.lstat()
        if (key := (status.st_dev, status.st_ino)) not in seen:
            seen.add(key)
            total += status.st_size
    return total


def _files_below(path: Path) -> Iterator[Path]:
    if path.is_symlink():
        return
    if path.is_file():
        yield path
    for folder, _, files in os.walk(path):
        yield from (file for name in files if not (file := Path(folder) / name).is_symlink())


def refuse_unless_idle(project: Path) -> None:
    """Raises UserError if a server, a flow run, a stage, a sweep or a point of this project is alive."""
    for pid_file in sorted((project / SERVERS_FOLDER).glob("*.pid")):
        if (process := recorded_process(pid_file)) is not None:
            raise UserError(f"the server {pid_file.stem} is up (process {process.pid}): run make down, then make clean")
    patterns = [workspace + lock for workspace in WORKSPACES for lock in LOCKS]
    for lock in sorted(path for pattern in patterns for path in project.glob(pattern)):
        with open(lock, encoding="utf-8") as file:
            if not try_to_lock(file):
                raise UserError(f"{lock} is held by process {file.read() or '?'}: wait for it, or stop it")


def refuse_users_own_files(project: Path, found: Sequence[Found]) -> None:
    """Raises UserError if a path of the user's own files in `params.yaml` lies in what would be deleted."""
    values = read_yaml(project / PARAMS_FILE)
    sets = (values.get("data") or {}).get("sets") or {}
    keys = [key for stage in TABLE for key in stage.user_files]
    for key in dict.fromkeys(key.replace("{item}", name) for key in keys for name in ("", *sets)):
        value = _value_of(values, key)
        if not isinstance(value, str):
            continue
        own = (project / Path(value).expanduser()).resolve()
        for one in found:
            if not one.path.is_symlink() and own.is_relative_to(one.path.resolve()):
                raise UserError(f"{key} in {PARAMS_FILE} is {value}, which lies in {one.path.name}: move it out first")


def _value_of(values: dict[str, Any], key: str) -> object:
    """The value of a key such as `data.sets.sft.path`; None if a mapping above it lacks it."""
    value: Any = values
    for name in key.split("."):
        value = (value or {}).get(name)
    return value


def delete(found: Sequence[Found]) -> None:
    """Delete all of it. Of a link only the link goes, and inside a folder too."""
    for one in found:
        if one.path.is_dir() and not one.path.is_symlink():
            shutil.rmtree(one.path)
        else:
            one.path.unlink(missing_ok=True)


def describe(project: Path, found: Sequence[Found]) -> str:
    """What goes, a line for each, and what stays."""
    lines = [f"These go, {in_words(sum(one.size for one in found))} in all:"]
    for one in found:
        name, size = one.path.relative_to(project).as_posix(), in_words(one.size)
        lines.append(f"  {name:16} {'a link' if one.path.is_symlink() else size:>10}  {one.meaning}")
    return "\n".join([*lines, f"These stay: {STAYING}."])


def in_words(size: int) -> str:
    """Bytes in a unit that fits: `1.3 GB`."""
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} bytes"


def clean(project: Path, ask: bool = True) -> None:
    """List what runs have made in a project, and delete it after a yes, or at once if not asked to `ask`.

    Raises UserError if `project` is no project or a copy of one, if it is in use, if the user's own files lie in what
    would be deleted, or if there is nobody to answer.
    """
    if main_project(project) != project.resolve() or not (project / PARAMS_FILE).exists():
        raise UserError(f"{project} is not the main folder of a project: run it where params.yaml and flows/ lie")
    refuse_unless_idle(project)
    found = found_in(project)
    if not found:
        print("there is nothing to delete", flush=True)
        return
    refuse_users_own_files(project, found)
    print(describe(project, found), flush=True)
    if ask and not answered_yes():
        print("nothing was deleted", flush=True)
        return
    with exclusive_lock(project / FLOW_LOCK, f"{project} is in use"):  # a flow run may have begun since the question
        delete(found)
    shutil.rmtree(project / STATE, ignore_errors=True)  # the lock above may have made it
    print("deleted", flush=True)


def answered_yes() -> bool:
    """Whether the person at the terminal answers yes. Raises UserError if there is none."""
    try:
        return input("Delete them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise UserError("nobody answered: run python -m flows.clean --yes to delete without a question") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Clean the project in the working directory, and return the exit code: 0 done or declined, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args(argv)
    try:
        clean(Path.cwd(), ask=not arguments.yes)
    except UserError as error:
        return complain(error, BAD_INPUT)
    return 0


if __name__ == "__main__":
    show_known_errors_in_a_line()
    sys.exit(main())

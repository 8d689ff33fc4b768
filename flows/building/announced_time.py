"""Says how long a run will take here, as soon as that is known. A child process works it out."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException

from flows.building.cached_stages import stages_in_cache
from tasks.system.errors import UserError
from tasks.system.processes import PARENT_VARIABLE, end_processes

MODULE = "tasks.planning.time_estimate"
GRACE_SECONDS = 5.0


@contextmanager
def announced_time(params: Mapping[str, Any], workspace: Path, stages: Sequence[str]) -> Iterator[None]:
    """Print the estimate of `tasks.planning.time_estimate` for `stages` while the block runs. It does not wait for it.

    To count the FLOPs takes seconds, mostly of imports. They pass beside the imports and the start of the flow, and
    while they pass, this process looks up which stages DVC's cache can fill. If the block ends first, as it does when
    all is up to date, nothing is printed. The working directory must be the main project.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE, str(workspace), *stages],
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    # the flow changes the working directory
    threading.Thread(target=_tell, args=(child, Path.cwd(), params), daemon=True, name="estimate").start()
    try:
        yield
    finally:
        end_processes([child], GRACE_SECONDS)


def _tell(child: subprocess.Popen[str], project: Path, params: Mapping[str, Any]) -> None:
    told = {"params": dict(params), "cached": sorted(_cached(project, params))}
    line, _ = child.communicate(yaml.safe_dump(told))
    if line:
        print(line.strip(), file=sys.stderr, flush=True)


def _cached(project: Path, params: Mapping[str, Any]) -> set[str]:
    """The stages that DVC's cache can fill. None of them if project or cache cannot be read, which the flow reports."""
    try:
        return stages_in_cache(project, params)
    except (OSError, KeyError, yaml.YAMLError, DvcException, UserError):
        return set()

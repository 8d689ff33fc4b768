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

from tasks.system.processes import PARENT_VARIABLE, end_processes

MODULE = "tasks.planning.time_estimate"
GRACE_SECONDS = 5.0


@contextmanager
def announced_time(params: Mapping[str, Any], workspace: Path, stages: Sequence[str]) -> Iterator[None]:
    """Print the estimate of `tasks.planning.time_estimate` for `stages` while the block runs. It does not wait for it.

    To count the FLOPs takes seconds, mostly of imports. They pass beside the imports and the start of the flow. If the
    block ends first, as it does when all is up to date, nothing is printed.
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
    threading.Thread(target=_tell, args=(child, yaml.safe_dump(dict(params))), daemon=True, name="estimate").start()
    try:
        yield
    finally:
        end_processes([child], GRACE_SECONDS)


def _tell(child: subprocess.Popen[str], params: str) -> None:
    line, _ = child.communicate(params)
    if line:
        print(line.strip(), file=sys.stderr, flush=True)

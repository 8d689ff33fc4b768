"""Looks at the locks of flows, stages, sweeps and points, and at those of DVC.

The system gives up a lock when every process that has its file open is gone. So a lock file that lies there means
nothing, and a lock that is held although its process is gone means that a child of that process lives.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from flows.building.durable_dvc_lock import RWLOCK
from flows.building.locks_of_runs import LOCKS
from flows.doctor.finding import Finding, fine, shown, workspaces
from tasks.system.file_locks import is_locked
from tasks.system.paths import STATE

OTHER_LOCKS = (f"{STATE}/mlflow.lock", ".dvc/tmp/lock")


def look(project: Path) -> Iterator[Finding]:
    """A line for each lock that is held, and for each entry of DVC's list of files in use that keeps others out."""
    held = False
    for workspace in workspaces(project):
        for path in sorted(path for pattern in (*LOCKS, *OTHER_LOCKS) for path in workspace.glob(pattern)):
            if path.is_file() and is_locked(path):
                held = True
                yield holder(path, shown(path, project))
        yield from files_in_use(workspace / RWLOCK, project)
    if not held:
        yield fine("no run, stage, sweep or point holds a lock")


def holder(path: Path, name: str) -> Finding:
    """Who holds a lock, and whether that is as it should be."""
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text.isdecimal() and psutil.pid_exists(int(text)):
        return fine(f"{name} is held by process {text} ({command_of(int(text))}), which is at work")
    heirs = [str(process.pid) for process in psutil.process_iter() if has_open(process, path)]
    if not text.isdecimal() and heirs:
        return fine(f"{name} is held by process {', '.join(heirs)}, which is at work")
    known = (
        f"end process {', '.join(heirs)}, which it had started" if heirs else "end the processes that it had started"
    )
    return Finding(f"{name} is held although process {text or '?'}, which took it, is gone: {known}")


def has_open(process: psutil.Process, path: Path) -> bool:
    """Whether a process has the file open. Those of other users cannot be seen."""
    with suppress(psutil.Error):
        return any(os.path.samefile(one.path, path) for one in process.open_files() if os.path.exists(one.path))
    return False


def command_of(pid: int) -> str:
    """The command of a process, shortened."""
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())[-60:]
    return "its command cannot be seen"


def files_in_use(path: Path, project: Path) -> Iterator[Finding]:
    """The entries of DVC's list of files in use whose process is another program by now.

    DVC drops the entry of a process that is gone. The system may have given the id to another process since.
    """
    if not path.exists():
        return
    try:
        entries = json.loads(path.read_bytes())
        infos = [info for one in entries.values() for info in (one.get("write"), *one.get("read", ())) if info]
        pids = sorted({int(info["pid"]) for info in infos})
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        yield Finding(f"{shown(path, project)} is damaged: make run mends it; before dvc repro delete it")
        return
    for pid in pids:
        if psutil.pid_exists(pid) and not any(name in command_of(pid) for name in ("dvc", "flows.", "python")):
            yield Finding(
                f"{shown(path, project)} says that process {pid} ({command_of(pid)}) uses outputs, which is no run: "
                "delete that file"
            )

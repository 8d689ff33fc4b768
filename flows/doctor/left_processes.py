"""Looks for processes of this project that stand still or have outlived what started them, and for unsent reports."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from flows.doctor.finding import Finding, fine, shown, workspaces
from tasks.system.processes import PARENT_VARIABLE
from tasks.tracking.report_spool import SPOOLS

OWN_COMMANDS = ("flows.", "tasks.")
EPHEMERAL = "PREFECT__SERVER_EPHEMERAL"
"""The variable by which Prefect's temporary server is told from others."""


def look(project: Path) -> Iterator[Finding]:
    """A line for each process that is not as it should be, one on those that are, and one on reports that wait."""
    found, at_work = False, 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if is_of(process, project) and process.pid != psutil.Process().pid:
                at_work += 1
                if fault := fault_of(process):
                    found = True
                    yield Finding(f"process {process.pid} ({' '.join(process.cmdline())[-60:]}) {fault}")
    if not found:
        yield fine(
            f"{at_work} processes of this project are at work" if at_work else "no process of this project lives"
        )
    for workspace in workspaces(project):
        if waiting := len(list((workspace / SPOOLS).glob("*.jsonl"))):
            yield fine(
                f"{waiting} runs in {shown(workspace / SPOOLS, project)} wait for MLflow: the next run sends them"
            )


def is_of(process: psutil.Process, project: Path) -> bool:
    """Whether a process is a flow, a stage or a temporary server that works in the project. Raises psutil's errors."""
    if not Path(process.cwd()).is_relative_to(project):
        return False
    command = process.cmdline()
    own = "-m" in command and any(word.startswith(OWN_COMMANDS) for word in command)
    return own or PARENT_VARIABLE in (environment := process.environ()) or EPHEMERAL in environment


def fault_of(process: psutil.Process) -> str:
    """What is wrong with a process and what to do; nothing if all is well. Raises psutil's errors."""
    if process.status() == psutil.STATUS_STOPPED:
        return f"stands still, since somebody has stopped it: kill -CONT {process.pid} lets it go on"
    parent = process.environ().get(PARENT_VARIABLE)
    # a process that a stage has started inherits the variable, so the parent's id says nothing while the parent lives
    if parent is not None and parent.isdecimal() and not psutil.pid_exists(int(parent)):
        return f"has outlived process {parent}, which started it: kill {process.pid} ends it"
    return ""

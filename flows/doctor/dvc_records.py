"""Looks at what DVC reads: its settings, `dvc.yaml` and `dvc.lock`, and marks of outputs that nobody has checked."""

from collections.abc import Iterator
from pathlib import Path

from flows.building.durable_dvc_lock import DVC_LOCK_FILE, whole_lock
from flows.building.dvc_lock import UNCHECKED
from flows.building.dvc_settings import FOLDER, read_dvc_settings
from flows.building.dvc_yaml_text import FILE, dvc_yaml
from flows.doctor.finding import Finding, fine, shown, workspaces
from tasks.system.errors import UserError


def look(project: Path) -> Iterator[Finding]:
    """The faults of each workspace's records, or one line if there are none."""
    wrong = False
    for finding in faults(project):
        wrong = True
        yield finding
    if not wrong:
        yield fine("DVC's settings, dvc.yaml and dvc.lock can be read")


def faults(project: Path) -> Iterator[Finding]:
    """The faults alone."""
    if not (file := project / FILE.name).exists() or file.read_bytes() != dvc_yaml().encode():
        yield Finding(f"{FILE.name} is not what tasks/stages.py and the imports of stages say: run make dvc.yaml")
    if not (folder := project / FOLDER).is_dir():
        yield Finding(f"{folder} is missing: take it back from git (git checkout {FOLDER}), or run dvc init --no-scm")
    for workspace in workspaces(project):
        try:
            read_dvc_settings(workspace)
        except UserError as error:
            yield Finding(str(error))
        lock = workspace / DVC_LOCK_FILE
        if lock.exists() and whole_lock(lock) is None:
            yield Finding(
                f"{shown(lock, project)} is damaged: make run puts its last good copy in place, dvc repro does not"
            )
        for mark in sorted((workspace / UNCHECKED).glob("*")):
            yield Finding(
                f"{mark.name} in {shown(workspace, project)} came out of DVC's cache and has not been checked, since "
                "its flow was killed: make run takes it out again"
            )

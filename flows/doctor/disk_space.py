"""Looks at the disks that runs write to: room, room for files, and whether they take writes."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flows.doctor.finding import Finding, fine, shown
from tasks.system.paths import COPIES, OUTPUTS, STATE
from tasks.system.readable_digits import BYTES, scaled

LEAST_BYTES = 10**9
"""Less free room than this is called too little. The default's run takes half of it."""
LEAST_FILES = 10_000
"""A file system that can hold no more files than this counts as full. Those without a limit say 0 of 0."""


def look(project: Path) -> Iterator[Finding]:
    """A line for each disk, and one for each folder that takes no writes."""
    home = Path(os.environ.get("PREFECT_HOME", project / ".prefect")).expanduser()
    below = (OUTPUTS, COPIES, STATE, Path(".dvc/cache"))
    seen: set[int] = set()
    for place in (project, *(project / name for name in below), home, Path(tempfile.gettempdir())):
        if not place.exists():
            if place.is_symlink():
                yield Finding(
                    f"{shown(place, project)} is a link to {os.readlink(place)}, which is not there: mount it"
                )
            continue
        # a link or a mount may lead to another disk
        name = "the project's folder" if place == project else shown(place, project)
        if not os.access(place, os.W_OK | os.X_OK):
            yield Finding(f"{name} takes no writes: {why_not(place)}")
        if (device := place.stat().st_dev) not in seen:
            seen.add(device)
            yield room_of(place, name)


def why_not(place: Path) -> str:
    """Why a folder takes no writes, and what to do."""
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return "its disk is mounted read-only: mount it for writing, or work elsewhere"
    return f"it belongs to user {place.stat().st_uid}: give yourself the right to it"


def room_of(place: Path, name: str) -> Finding:
    """How much room the disk of a folder has."""
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if free < LEAST_BYTES:
        return Finding(f"{name}: {scaled(free, BYTES)} are free: make room (make clean lists what runs have made)")
    if disk.f_files and disk.f_favail < LEAST_FILES:
        return Finding(f"{name}: its disk has room for {disk.f_favail} more files: delete files that nobody needs")
    return fine(f"{name}: {scaled(free, BYTES)} are free (make plan says what a run takes)")

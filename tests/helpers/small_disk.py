"""Runs Python in a folder whose disk is small, where this user may mount one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT

# Its arguments are the folder to copy to, the options of the disk, those of a later mount, and a command.
SCRIPT = """
set -e
cp -a . "$1"
mount -t tmpfs -o "$2" tmpfs .
cd "$PWD"
cp -a "$1"/. .
if [ -n "$3" ]; then mount -o "remount,$3" "$PWD"; fi
echo mounted >&2
shift 3
exec "$@"
"""


def python_on_a_disk(folder: Path, options: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments in `folder`, over which a disk in memory is mounted, with a copy of its files.

    `options` are those of tmpfs, such as `size=1m`, or `size=1m then ro` where the disk takes no more writes. Only this
    process sees the disk. Skips the test where this user may not mount.
    """
    before = folder.with_name(f"{folder.name} before")
    before.mkdir()
    size, _, later = options.partition(" then ")
    command = ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", str(before), size, later, sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if "mounted\n" not in done.stderr:
        pytest.skip(f"this user may not mount: {done.stderr}")
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, done.stderr.partition("mounted\n")[2])

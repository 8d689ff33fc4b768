"""A project's folder for tests of who may read what is in it, and plain Python in it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT


@contextmanager
def project_folder() -> Iterator[Path]:
    """A project's folder that every account can enter, as the working directory."""
    root, before = Path(tempfile.mkdtemp()), Path.cwd()
    root.chmod(0o755)
    for name in ("dvc.yaml", "params.yaml"):
        (root / name).touch()
    os.chdir(root)
    yield root
    os.chdir(before)
    shutil.rmtree(root)


def plain_environment() -> dict[str, str]:
    """This process's environment without what Prefect reads, and with the way to the project's code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return kept | {"PYTHONPATH": str(PROJECT)}


def python(code: str, **own: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the working directory."""
    command = [sys.executable, "-c", code]
    env = plain_environment() | own
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS)

"""A stage whose disk fills up ends with one line that names it and says what to do."""

import subprocess
from pathlib import Path

from tests.helpers.small_disk import python_on_a_disk
from tests.helpers.small_workspace import write_params


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a stage that has failed. Before it MLflow's sender may say in a line that reports wait."""
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr and len(lines) <= 2, done.stderr
    return lines[-1]


def test_a_stage_whose_disk_fills_up_ends_with_one_line(tmp_path: Path) -> None:
    (workspace := tmp_path / "workspace").mkdir()
    write_params(workspace, {})
    done = python_on_a_disk(workspace, "size=200k", "-m", "tasks.shard")
    line = last_line(done)
    assert line.startswith("shard: ") and "No space left on device: make room on its disk" in line
    assert str(workspace) in line


def test_a_stage_on_a_disk_that_takes_no_writes_ends_with_one_line(tmp_path: Path) -> None:
    (workspace := tmp_path / "workspace").mkdir()
    write_params(workspace, {})
    done = python_on_a_disk(workspace, "size=1m then ro", "-m", "tasks.shard")
    line = last_line(done)
    assert line.startswith("shard: ") and "Read-only file system" in line and ".sana15" in line

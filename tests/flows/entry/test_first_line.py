"""A flow that a person starts says so before it imports its libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT


def start(module: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a command where Prefect cannot be imported."""
    (folder / "prefect.py").write_text("raise SystemExit('Prefect is being imported')")
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


@pytest.mark.parametrize("module", ["flows.full_pipeline", "flows.sweep"])
def test_the_first_line_is_printed_before_prefect_is_imported(module: str, tmp_path: Path) -> None:
    lines = start(module, tmp_path).stderr.splitlines()
    assert lines == ["sana15: starting", "Prefect is being imported"]


@pytest.mark.parametrize(("module", "arguments"), [("flows.full_pipeline", ["--help"]), ("flows.servers", ["status"])])
def test_a_command_that_starts_no_flow_says_nothing_of_a_start(
    module: str, arguments: list[str], tmp_path: Path
) -> None:
    assert "starting" not in start(module, tmp_path, *arguments).stderr

"""The estimate of a run's time holds nothing up and leaves nothing behind."""

from pathlib import Path

import psutil
import pytest

from flows.building import announced_time
from tests.helpers.patience import wait_for

ECHO = "import sys; print(sys.argv[1:], sys.stdin.read().split())"
HANGS = "import time; time.sleep(3600)"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that stands for the one which estimates."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(announced_time, "MODULE", "estimates")
    return tmp_path / "estimates.py"


def test_what_the_estimate_says_of_these_params_is_printed_while_the_flow_runs(
    module: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module.write_text(ECHO)
    with announced_time.announced_time({"seed": 3}, tmp_path / "runs", ["shard", "grow"]):
        said: list[str] = []
        wait_for(lambda: said.append(capfd.readouterr().err) or "".join(said).endswith("\n"), "the estimate")
    assert "".join(said) == f"{[str(tmp_path / 'runs'), 'shard', 'grow']} ['seed:', '3']\n"


def test_an_estimate_that_is_not_ready_when_the_flow_ends_is_ended_with_it(
    module: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module.write_text(HANGS)
    with announced_time.announced_time({}, tmp_path, ["shard"]):
        (child,) = [one for one in psutil.Process().children() if "estimates" in one.cmdline()]
    assert not child.is_running()
    assert capfd.readouterr().err == ""

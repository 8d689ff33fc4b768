"""`make demo` looks for a model before it installs anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def make_demo(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run `make demo` in a folder, with a Python that fails at once: setting up begins, but installs nothing."""
    shutil.copy(MAKEFILE, folder)
    command = ["make", "demo", "PYTHON=false", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("unfinished", [None, "grown_init", "text_encoder", "pruned-2.partial/deeper"])
def test_without_a_finished_model_one_line_says_so_and_nothing_is_installed(
    tmp_path: Path, unfinished: str | None
) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    if unfinished:
        (tmp_path / "outputs" / unfinished).mkdir(parents=True)
        (tmp_path / "outputs" / unfinished / "model.safetensors").touch()
    done = make_demo(tmp_path)
    assert done.returncode == 2 and "outputs has no finished model: run make run first" in done.stderr
    assert "venv" not in done.stdout + done.stderr and not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("outputs", [None, "runs/a b", "runs/a b/outputs"])
@pytest.mark.parametrize("name", ["small", "pruned-4", "sft-grown"])
def test_with_a_finished_model_the_page_is_made_ready(tmp_path: Path, outputs: str | None, name: str) -> None:
    for file in ("pyproject.toml", "constraints.txt"):
        (tmp_path / file).touch()
    folder = tmp_path / "outputs" if outputs is None else tmp_path / "runs/a b/outputs"
    (folder / name).mkdir(parents=True)
    (folder / name / "model.safetensors").touch()
    done = make_demo(tmp_path, *([] if outputs is None else [f"OUTPUTS={outputs}"]))
    assert "no finished model" not in done.stderr
    assert "false -m venv .venv" in done.stdout, "setting up has begun, with the python that fails at once"

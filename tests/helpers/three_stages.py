"""A real project of three tiny stages, whose commands are one script, and what it takes to bring them up to date."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from dvc.config import Config
from dvc.repo import Repo

from flows.building.stage_builder import open_builder
from tasks import stages
from tasks.stages import Stage
from tests.helpers.small_workspace import write_params

DVC_YAML = """
stages:
  first:
    cmd: python make.py outputs/first
    params: [compute.seed]
    deps: [code]
    outs: [outputs/first]
  second:
    cmd: python make.py outputs/second outputs/first/seen
    params: [finetune.checkpoint_every]
    deps: [outputs/first]
    outs: [outputs/second]
  report:
    cmd: python make.py results outputs/second/seen
    deps: [outputs]
    outs:
      - results/seen:
          cache: false
"""


@dataclass(frozen=True)
class ShellStage(Stage):
    """A stage whose command is no module of the project."""

    words: str = ""

    @property
    def command(self) -> str:
        return self.words


TABLE = (
    ShellStage("first", Path("outputs/first"), (), ("compute.seed",), words="python make.py outputs/first"),
    ShellStage(
        "second",
        Path("outputs/second"),
        (Path("outputs/first"),),
        ("finetune.checkpoint_every",),
        words="python make.py outputs/second outputs/first/seen",
    ),
    ShellStage(
        "report",
        Path("results"),
        (Path("outputs"),),
        (),
        uncached_files=("seen",),
        words="python make.py results outputs/second/seen",
    ),
)

# writes what it reads, and the manifest of it; where `edit.py` lies beside it, that edits the project meanwhile
MAKE = """
import hashlib, json, sys
from pathlib import Path

out, *read = map(Path, sys.argv[1:])
seen = b"".join(path.read_bytes() for path in [Path("params.yaml"), *read])
out.mkdir(parents=True, exist_ok=True)
(out / "seen").write_bytes(seen)
digest = hashlib.sha256(seen).hexdigest()
(out / "manifest.json").write_text(json.dumps({"files": {"seen": {"bytes": len(seen), "sha256": digest}}}))
if Path("edit.py").exists():
    exec(Path("edit.py").read_text())
"""


@contextmanager
def three_stage_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in the new folder, which is the working directory for the block. MLflow cannot be reached."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(stages, "TABLE", TABLE)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with chdir(new_project(folder)):
        yield folder


def new_project(root: Path) -> Path:
    root.mkdir()
    Repo.init(str(root), no_scm=True).close()
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "make.py").write_text(MAKE)
    (root / "code").write_text("1")
    set_params(root, 1, 1)
    return root


def set_params(root: Path, seed: int, every: int) -> None:
    write_params(root, {"compute.seed": seed, "finetune.checkpoint_every": every})


def build(root: Path, remote: bool = False) -> dict[str, str]:
    """Bring every stage up to date; says what that took for each."""
    took: dict[str, str] = {}
    with chdir(root), open_builder(root, "test", {}, remote) as opened:
        for name in opened.dvc_lock.stages:
            said: list[str] = []
            built = opened.build(name, said.append)
            took[name] = ("restored" if said else "cached") if built.cached else "ran"
        if remote:
            opened.push(list(took))
    return took


def taken(first: str, second: str, report: str) -> Mapping[str, str]:
    return {"first": first, "second": second, "report": report}


def status(root: Path) -> dict:
    with Repo(str(root), config={"core": {"no_scm": True}}) as repo:
        return repo.status()


def seen(root: Path, stage: str) -> bytes:
    return (root / "outputs" / stage / "seen").read_bytes()


def add_remote(root: Path, url: Path) -> None:
    with Config(str(root / ".dvc")).edit("repo") as settings:
        settings["remote"] = {"storage": {"url": str(url)}}
        settings["core"]["remote"] = "storage"

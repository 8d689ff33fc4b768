"""The text of `dvc.yaml`, which spells the table of stages (`tasks/stages.py`) for DVC, and whether the file has it.

The file is generated, since DVC must read a stage's inputs, params and code from a file of its own. A stage depends on
the modules that its own module imports, so that an edit of any other code leaves it cached. A folder stands for its
modules where the stage imports all of them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml

from tasks.params.compute_params import Baseline
from tasks.runtime.code_digest import PROJECT, stage_files
from tasks.stages import BASELINES, TABLE, Stage
from tasks.system import paths
from tasks.system.errors import UserError

FILE = PROJECT / "dvc.yaml"
HEAD = """\
# Generated from tasks/stages.py: edit that, then run make dvc.yaml. A test says when this file is stale.

"""
LOSS_PLOT = {
    "held-out loss": {
        "template": "linear",
        "x": "step",
        "y": {f"{folder}/heldout.csv": "heldout_loss" for folder in (paths.SMALL, paths.GROWN)},
        "x_label": "step",
        "y_label": "held-out loss",
    }
}


def dvc_yaml() -> str:
    """The text of `dvc.yaml`."""
    stages = {f"{row.stem}{row.family.suffix if row.family else ''}": dvc_stage(row) for row in TABLE}
    text = yaml.safe_dump(
        {"stages": stages, "metrics": metrics_files(), "plots": [LOSS_PLOT]}, sort_keys=False, width=120
    )
    return HEAD + text


def dvc_stage(row: Stage) -> dict[str, Any]:
    """The entry of a row in `dvc.yaml`: a stage, or one of DVC's groups of stages (`foreach` or `matrix`)."""
    if row.family is None:
        return _described(row)
    described = _described(row.for_item(row.family.dvc_item))
    group = dict(row.family.dvc_group)
    return {**group, "do": described} if "foreach" in group else {**group, **described}


def _described(stage: Stage) -> dict[str, Any]:
    """The command, dependencies, params and outputs of one stage. DVC fills in the keys of params in its paths."""
    stage = stage.filled(lambda name: f"${{{name}}}")
    inputs = [path.as_posix() for path in stage.inputs]
    cached = [path.as_posix() for path in stage.written if path.name not in stage.uncached_files]
    uncached = [{(stage.output / name).as_posix(): {"cache": False}} for name in stage.uncached_files]
    return {
        "cmd": stage.command,
        "deps": [*folded(stage_files(stage.stem)), *inputs],
        "params": list(stage.sections),
        "outs": [*uncached, *cached],
    }


def folded(files: Iterable[Path]) -> list[str]:
    """The files, with a folder in place of its modules if all modules in it and in the folders below are among them."""
    chosen = set(files)
    whole = {folder for file in chosen for folder in file.parents[:-1] if _modules(folder) <= chosen}
    places = {max((folder for folder in file.parents if folder in whole), key=_length, default=file) for file in chosen}
    return sorted(place.as_posix() for place in places)


def _length(folder: Path) -> int:
    """A key for `max` by which the outermost folder is the greatest."""
    return -len(folder.parts)


def _modules(folder: Path) -> set[Path]:
    """The modules in a folder and below it. `__init__.py` is left out: a stage need not list one without code."""
    modules = (path.relative_to(PROJECT) for path in (PROJECT / folder).rglob("*.py"))
    return {path for path in modules if path.name != "__init__.py"}


def metrics_files() -> list[str]:
    """The files that `dvc metrics show` reads: the metrics of every stage outside a family, and of the baselines."""
    rows = [row for row in TABLE if row.family is None]
    scored = [row.for_item(name) for row in TABLE if row.family is BASELINES for name in get_args(Baseline)]
    return [(stage.output / "metrics.json").as_posix() for stage in [*rows, *scored]]


def refuse_stale_file() -> None:
    """Raise UserError if `dvc.yaml` is not what would be written: DVC would call stages cached that are not."""
    if FILE.read_text(encoding="utf-8") != dvc_yaml():
        raise UserError("dvc.yaml is not what tasks/stages.py and the imports of stages say: run make dvc.yaml")

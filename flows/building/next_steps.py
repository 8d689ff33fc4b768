"""What a flow says at its end if it was asked to stop at a stage: which models are there, and the next commands."""

import json
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.params.experiment_params import Params
from tasks.stages import stages_of
from tasks.tracking.model_registry import FAMILY


def next_steps(
    root: Path, stages: Collection[str], params: Params, profile: str | None, overrides: Mapping[str, Any]
) -> list[str]:
    """Lines that name the models that `stages` have made in the workspace `root`, and commands that can follow.

    One command draws with the last of these models, if there is one. The other runs the stages that are left, with the
    same profile and overrides. Both are to be run in the working directory.
    """
    outputs = [root / stage.output for name, stage in stages_of(params).items() if name in stages]
    models = [os.path.relpath(folder) for folder in outputs if FAMILY.fullmatch(folder.name) and folder.is_dir()]
    command = ["python", "-m", "flows.full_pipeline", *(["--profile", profile] if profile is not None else [])]
    for key, value in overrides.items():
        command += ["-p", f"{key}={_as_yaml(value)}"]
    go_on = f"to run the other stages: {shlex.join(command)}"
    if not models:
        return ["models: none yet", go_on]
    draw = ["python", "-m", "tasks.generate", "your prompt", "--model", models[-1], "--n", "1"]
    return [f"models: {', '.join(models)}", f"to draw: {shlex.join(draw)}", go_on]


def _as_yaml(value: Any) -> str:
    """A value as YAML reads it again. JSON is YAML too, but most texts need no quotation marks."""
    plain = isinstance(value, str) and yaml.safe_load(value) == value
    return value if plain else json.dumps(value)

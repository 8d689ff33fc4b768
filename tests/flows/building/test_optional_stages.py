"""Stages that exist only if params name them: DVC resolves the same stages as the flow, with them and without."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from tasks.params.params_files import load_params
from tasks.runtime.code_digest import PROJECT
from tasks.stages import name_of, stages_of
from tests.helpers.small_workspace import write_params

MADE_JUDGE = {
    "judge_finetune.pictures_of": ["small", "grown"],
    "judge_finetune.ways": ["whole", "lora"],
    "judge_finetune.path": "checkpoints/model",
}
NAMES = {"judge_examples@small", "judge_examples@grown", "judge_finetune@whole", "judge_finetune@lora"}


@pytest.mark.parametrize(("changes", "added"), [({}, set()), (MADE_JUDGE, NAMES)])
def test_dvc_and_the_flow_have_the_same_optional_stages(
    tmp_path: Path, changes: dict[str, Any], added: set[str]
) -> None:
    (tmp_path / ".dvc").mkdir()
    shutil.copyfile(PROJECT / "dvc.yaml", tmp_path / "dvc.yaml")
    write_params(tmp_path, changes)
    params = load_params(tmp_path / "params.yaml")
    with Repo(str(tmp_path), config={"core": {"no_scm": True}}) as repo:
        outputs = {name_of(stage.cmd): [out.def_path for out in stage.outs] for stage in repo.index.stages}
    stages = stages_of(params)
    assert outputs.keys() == stages.keys() and added <= outputs.keys()
    assert {name for name in outputs if name.startswith(("judge_examples", "judge_finetune"))} == added
    assert all(outputs[name] == [stages[name].output.as_posix()] for name in added)
    assert not any(stages["report"].reads(stages[name]) for name in added)

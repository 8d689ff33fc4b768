"""Stages that exist only if params name them: DVC resolves the same stages as the flow, with them and without."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from tasks.params.params_files import apply_profile, load_params, read_yaml
from tasks.runtime.code_digest import PROJECT
from tasks.stages import name_of, stage_of, stages_of
from tasks.system.errors import UserError
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


@pytest.mark.parametrize("profile", [None, *sorted(path.stem for path in (PROJECT / "profiles").glob("*.yaml"))])
def test_dvc_has_no_stage_of_a_profile_that_its_own_command_refuses(tmp_path: Path, profile: str | None) -> None:
    (tmp_path / ".dvc").mkdir()
    shutil.copyfile(PROJECT / "dvc.yaml", tmp_path / "dvc.yaml")
    values = read_yaml(PROJECT / "params.yaml")
    values = values if profile is None else apply_profile(values, profile, PROJECT / "profiles")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    params = load_params(tmp_path / "params.yaml")
    with Repo(str(tmp_path), config={"core": {"no_scm": True}}) as repo:
        names = {name_of(stage.cmd) for stage in repo.index.stages}
    assert names == stages_of(params, unused_sets=True).keys() >= stages_of(params).keys()
    for name in names:
        stem, _, item = name.partition("@")
        assert stage_of(stem, params, item or None).name == name


def test_a_set_that_no_section_learns_from_is_built_by_dvc_alone(tmp_path: Path) -> None:
    write_params(tmp_path, {"data.sets": {"idle": {"image_size": 32}}})
    params = load_params(tmp_path / "params.yaml")
    assert stages_of(params, unused_sets=True).keys() - stages_of(params).keys() == {"shard@idle", "encode@idle"}
    assert stage_of("shard", params, "idle").command == "python -m tasks.shard --data idle"
    with pytest.raises(UserError, match=r"^--data other is not in params\.yaml's data\.sets: choose from idle$"):
        stage_of("shard", params, "other")
    with pytest.raises(
        UserError, match=r"^--model grown is not in params\.yaml's sft\.models: it is empty; add it there$"
    ):
        stage_of("sft", params, "grown")


def test_another_way_of_fine_tuning_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    write_params(tmp_path, MADE_JUDGE)
    stage = stages_of(load_params(tmp_path / "params.yaml"))["judge_finetune@lora"]
    assert "judge_finetune.learning_rate" in stage.sections
    assert not {"judge_finetune", "judge_finetune.ways"} & set(stage.sections)

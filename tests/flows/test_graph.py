"""The stage graph is spelled three times (the flow, dvc.yaml, the stages' own records): here they are held together."""

import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from flows.graph import submit_stages
from flows.pins import own_name
from tasks.params import Params, load_params
from tasks.sources import PROJECT, ROOMS, imported_files, module_of
from tasks.stage import Stage


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(PROJECT / "params.yaml")


@pytest.fixture(scope="module")
def dvc_stages() -> dict[str, Any]:
    with Repo(str(PROJECT), config={"core": {"no_scm": True}}) as repo:
        return {own_name(stage.name): stage for stage in repo.index.stages}


def module_run_by(command: str) -> str:
    """`tasks.geneval.__main__` for `python -m tasks.geneval --model small`."""
    return module_of(shlex.split(command)[2].removeprefix("tasks."))


def record_of(command: str, params: Params) -> Stage:
    """The record that a stage's module gives for the arguments of its command line."""
    arguments = shlex.split(command)[4:]
    values = [int(argument) if argument.isdigit() else argument for argument in arguments]
    return importlib.import_module(module_run_by(command)).stage(params, *values)


def outputs(stage: Any) -> list[Path]:
    return [Path(out.def_path) for out in stage.outs]


def inputs(stage: Any) -> list[Path]:
    """The outputs of other stages among a DVC stage's dependencies."""
    paths = [Path(dependency.def_path) for dependency in stage.deps if dependency.protocol == "local"]
    return [path for path in paths if path.parts[0] == "outputs"]


def code(stage: Any) -> list[Path]:
    paths = {Path(d.def_path) for d in stage.deps if d.protocol == "local" and not hasattr(d, "params")}
    return sorted(path for path in paths if path.parts[0] in ROOMS)


def within(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def upstream(name: str, stages: dict[str, Any]) -> set[str]:
    """Stages whose outputs a stage reads, by DVC's rule: an output that lies in, or is, one of its dependencies."""
    return {
        other
        for other, stage in stages.items()
        if other != name and any(within(out, path) for out in outputs(stage) for path in inputs(stages[name]))
    }


def test_the_flow_and_dvc_yaml_have_the_same_edges(params: Params, dvc_stages: dict[str, Any]) -> None:
    edges: dict[str, set[str]] = {}

    def submit(name: str, upstream: tuple[str, ...]) -> str:
        edges[name] = set(upstream)
        return name

    submit_stages(submit, params)
    assert edges == {name: upstream(name, dvc_stages) for name in dvc_stages}


def test_a_fine_tune_parameter_reaches_fine_tunes_their_scores_and_the_report_alone(
    params: Params, dvc_stages: dict[str, Any]
) -> None:
    reached = {name for name, stage in dvc_stages.items() if any("finetune" in d.params for d in stage.params)}
    assert reached == {f"finetune@{depth}" for depth in params.prune.depths}
    while behind := {name for name in dvc_stages if upstream(name, dvc_stages) & reached} - reached:
        reached |= behind
    branches = {f"{stage}{depth}" for stage in ("finetune@", "geneval@finetuned-") for depth in params.prune.depths}
    assert reached == {*branches, "report"}


def test_dvc_yaml_and_the_stages_records_agree(params: Params, dvc_stages: dict[str, Any]) -> None:
    for name, stage in dvc_stages.items():
        record = record_of(stage.cmd, params)
        listed = {key for dependency in stage.params for key in dependency.params}
        assert record.name == name
        assert set(record.sections) == listed, name
        assert record.branch == ("compute.branch_threads" in listed), name
        assert all(within(out, record.out) for out in outputs(stage)), name
        assert all(any(within(path, read) for read in inputs(stage)) for path in record.inputs), name
        assert all(any(within(path, read) for path in record.inputs) for read in inputs(stage)), name


def test_every_module_that_a_stage_imports_is_among_its_dependencies(dvc_stages: dict[str, Any]) -> None:
    for name, stage in dvc_stages.items():
        used = set(imported_files(module_run_by(stage.cmd)))
        missing = {path for path in used if not any(within(path, dependency) for dependency in code(stage))}
        assert not missing, f"{name} imports {sorted(map(str, missing))}: add them to its deps in dvc.yaml"
        idle = [path for path in code(stage) if not any(within(file, path) for file in used)]
        assert not idle, f"{name} imports nothing of {idle}: take them off its deps in dvc.yaml"

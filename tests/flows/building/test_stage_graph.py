"""Claims about the table of stages: the flow, DVC, the plan and the report of times follow from it."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from flows.building import dvc_yaml_text as dvc_yaml
from flows.building.stage_graph import stages_until, submit_stages, upstream_of
from tasks import stages as table
from tasks.params.experiment_params import Params
from tasks.params.params_files import apply_overrides, build_params, load_params, read_yaml
from tasks.runtime.code_digest import PLUMBING, PROJECT, ROOMS, is_plumbing, stage_files
from tasks.stages import TABLE, Stage, edges, name_of, stages_of, stems
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.patience import PATIENCE_SECONDS


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(PROJECT / "params.yaml")


@pytest.fixture(scope="module")
def dvc_stages() -> dict[str, Any]:
    """The stages of dvc.yaml as DVC resolves them for params.yaml, by our names."""
    with Repo(str(PROJECT), config={"core": {"no_scm": True}}) as repo:
        return {name_of(stage.cmd): stage for stage in repo.index.stages}


def outputs(stage: Any) -> list[Path]:
    return [Path(out.def_path) for out in stage.outs]


def inputs(stage: Any) -> list[Path]:
    """The outputs of other stages among a DVC stage's dependencies."""
    paths = [Path(dependency.def_path) for dependency in stage.deps if dependency.protocol == "local"]
    return [path for path in paths if path.parts[0] == "outputs"]


def code(stage: Any) -> list[Path]:
    paths = {Path(d.def_path) for d in stage.deps if d.protocol == "local" and not hasattr(d, "params")}
    return sorted(path for path in paths if path.parts[0] in ROOMS)


def upstream(name: str, stages: dict[str, Any]) -> set[str]:
    """Stages whose outputs a stage reads, by DVC's rule: an output that lies in, or is, one of its dependencies."""
    return {
        other
        for other, stage in stages.items()
        if other != name and any(out.is_relative_to(path) for out in outputs(stage) for path in inputs(stages[name]))
    }


def flow_edges(params: Params) -> dict[str, set[str]]:
    """What each stage waits for in the flow, in the order in which the flow submits them."""
    edges: dict[str, set[str]] = {}

    def submit(name: str, upstream: list[str]) -> str:
        edges[name] = set(upstream)
        return name

    submit_stages(submit, params)
    return edges


def test_dvc_yaml_is_what_the_table_of_stages_says() -> None:
    dvc_yaml.refuse_stale_file()


def test_a_stale_dvc_yaml_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_yaml, "FILE", tmp_path / "dvc.yaml")
    (tmp_path / "dvc.yaml").write_text(dvc_yaml.dvc_yaml() + "# edited\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^dvc\.yaml is not what tasks/stages\.py .* say: run make dvc\.yaml$"):
        dvc_yaml.refuse_stale_file()


def test_a_row_in_front_of_what_it_reads_is_refused(params: Params) -> None:
    backwards = list(stages_of(params).values())[::-1]
    with pytest.raises(ValueError, match=r"^report reads what .* writes: its row belongs behind theirs$"):
        edges(backwards)


def test_the_flow_and_dvc_yaml_have_the_same_edges(params: Params, dvc_stages: dict[str, Any]) -> None:
    edges = flow_edges(params)
    assert edges == {name: upstream(name, dvc_stages) for name in dvc_stages}
    for name, before in edges.items():
        assert before <= set(list(edges)[: list(edges).index(name)]), f"{name} is submitted too early"


WITH_SFT = {
    "scratch.depths": [8],
    "data.sets": {"sft": {"scene_tasks": ["position"]}, "unused": {"train_samples": 9}},
    "sft.models": ["grown", "finetuned-6"],
    "sft.data": "encoded-sft",
}


def params_with_sft() -> dict[str, Any]:
    """The default with a model from scratch, two fine-tuned on a further data set, and a set that no section names."""
    return apply_overrides(read_yaml(PROJECT / "params.yaml"), WITH_SFT, "test")


def test_lists_that_are_empty_make_no_stage_in_the_flow_and_in_dvc(params: Params, dvc_stages: dict[str, Any]) -> None:
    assert stages_of(params).keys() == dvc_stages.keys()
    assert not {name for name in dvc_stages if "sft" in name or "scratch" in name}
    assert [name for name in dvc_stages if name.partition("@")[0] in ("shard", "encode")] == ["shard", "encode"]


def test_a_further_data_set_and_the_models_that_learn_from_it_are_stages_of_the_flow_and_of_dvc(
    tmp_path: Path, params: Params
) -> None:
    values = params_with_sft()
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
    shutil.copytree(PROJECT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    chosen = build_params(values, "test")
    with Repo(str(tmp_path), config={"core": {"no_scm": True}}) as repo:
        known = {name_of(stage.cmd): stage for stage in repo.index.stages}
        edges = flow_edges(chosen)
        assert edges.keys() - flow_edges(params).keys() == {
            "shard@sft",
            "encode@sft",
            "scratch@8",
            "evaluate@scratch-8",
            "sft@grown",
            "sft@finetuned-6",
            "evaluate@sft-grown",
            "evaluate@sft-finetuned-6",
        }
        assert known.keys() - edges.keys() == {"shard@unused", "encode@unused"}  # DVC has every set that is described
        assert edges == {name: upstream(name, known) & edges.keys() for name in edges}
    assert edges["encode@sft"] == {"shard@sft", "autoencoder", "text_encoder"}
    assert edges["sft@grown"] == {"train", "encode@sft"}
    assert edges["scratch@8"] == {"encode"} and "scratch@8" in edges["evaluate@scratch-8"] & edges["report"]
    assert {"shard@sft", "encode@sft"} <= upstream_of(chosen)["evaluate@sft-grown"] & upstream_of(chosen)["report"]


def test_the_set_that_a_section_names_is_the_one_that_its_stage_reads() -> None:
    values = params_with_sft()
    values["pretrain"]["data"] = values["train"]["data"] = "encoded-unused"
    stages = stages_of(build_params(values, "test"))
    read = {
        name: [path.name for path in stage.inputs if path.name.startswith("encoded")] for name, stage in stages.items()
    }
    assert read["pretrain"] == read["train"] == ["encoded-unused"]
    assert read["sft@grown"] == ["encoded-sft"] and read["finetune@6"] == read["grow"] == ["encoded"]
    assert "encode@unused" in stages and stages["shard@unused"].user_files == ("shard.path", "data.sets.unused.path")


def test_the_list_of_models_to_fine_tune_changes_none_of_them() -> None:
    sections = stages_of(build_params(params_with_sft(), "test"))["sft@grown"].sections
    assert "sft.learning_rate" in sections and not {"sft", "sft.models"} & set(sections)


def test_a_fine_tune_parameter_reaches_fine_tunes_their_scores_and_the_report_alone(params: Params) -> None:
    reads = {name for name, stage in stages_of(params).items() if "finetune" in stage.sections}
    assert reads == {f"finetune@{depth}" for depth in params.prune.depths}
    reached = reads | {name for name, above in upstream_of(params).items() if above & reads}
    branches = {f"{stage}{depth}" for stage in ("finetune@", "evaluate@finetuned-") for depth in params.prune.depths}
    assert reached == {*branches, "report"}


def test_a_run_until_a_stage_has_that_stage_and_what_it_reads_in_order(params: Params) -> None:
    before = ["shard", "autoencoder", "text_encoder", "encode", "pretrain", "grow", "train", "importance"]
    assert list(stages_until(["finetune@6"], params, "until")) == [*before, "prune@6", "finetune@6"]
    assert list(stages_until(["shard"], params, "until")) == ["shard"]
    assert set(stages_until(["report"], params, "until")) == set(stages_of(params))


def test_a_run_until_a_stem_has_all_items_of_that_stage(params: Params) -> None:
    items = [f"finetune@{depth}" for depth in params.prune.depths]
    assert stages_until(["finetune"], params, "until") == stages_until(items, params, "until")
    assert {stage for stage in stages_until(["finetune"], params, "until") if stage.startswith("finetune")} == {*items}


@pytest.mark.parametrize("name", ["fine", "finetune@", "finetune@9", ""])
def test_a_run_until_no_stage_is_refused_with_the_stages_that_there_are(params: Params, name: str) -> None:
    with pytest.raises(UserError, match=rf"^--until names '{name}': it must be one of shard, [^\n]*, finetune@6"):
        stages_until([name], params, "--until")


def test_every_stage_has_a_module_that_computes_it() -> None:
    for row in TABLE:
        assert callable(importlib.import_module(row.module).run), row.name


@pytest.mark.parametrize("stem", stems())
def test_a_stage_depends_on_the_files_that_it_imports_and_no_others(stem: str) -> None:
    """The reference is Python's own `modulefinder`, which reads the imports out of the compiled code."""
    finder = ModuleFinder(path=[str(PROJECT)], excludes=PLUMBING)
    finder.run_script(str(PROJECT / "tasks" / f"{stem}.py"))
    found = {(name, Path(module.__file__)) for name, module in finder.modules.items() if module.__file__}
    imported = {file for name, file in found if not is_plumbing(name) and file.name != "__init__.py"}
    assert {
        PROJECT / file for file in stage_files(stem) if file.suffix == ".py" and file.name != "__init__.py"
    } == imported


@pytest.mark.parametrize("stem", stems())
def test_a_stage_reads_no_output_but_those_that_its_row_names(stem: str) -> None:
    rows = [row for row in TABLE if row.stem == stem]
    folders = {folder for row in rows for folder in (*row.inputs, row.output)}
    for file in stage_files(stem):
        for name in re.findall(r"\bpaths\.([A-Z_]+)\b", (PROJECT / file).read_text(encoding="utf-8")):
            place = getattr(paths, name)
            if place.is_relative_to(paths.OUTPUTS) and place != paths.OUTPUTS:
                assert any(place.is_relative_to(folder) for folder in folders), f"{file} uses paths.{name}"


def test_params_and_user_files_of_the_table_are_keys_of_params_yaml(params: Params) -> None:
    for row in TABLE:
        for key in (*row.sections, *row.user_files):
            section, *name = key.split(".")
            assert hasattr(params, section) and (not name or hasattr(getattr(params, section), name[0])), key


DUMMY = '''"""Stage `dummy`: counts the files of the small model."""

from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths


def run(context: Context) -> Metrics:
    """Write the count."""
    count = len(list(paths.SMALL.iterdir()))
    (context.out / "count.txt").write_text(str(count), encoding="utf-8")
    return {"files": float(count)}


if __name__ == "__main__":
    stage_command("dummy", __doc__)
'''
REPORT = '    Stage(\n        "report",'
ROW = f'    Stage("dummy", output=paths.OUTPUTS / "dummy", inputs=(paths.SMALL,), sections=()),\n{REPORT}'
KNOWN = """
from flows.building.stage_graph import upstream_of
from flows import dvc_yaml
from tasks.params.params_files import load_params
from tasks.planning.cost_plan import Settings, make_plan
from tasks.reporting.report_numbers import measured_costs
from tasks.runtime.stage_run import run_stage
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.manifest import write_manifest

assert dvc_yaml.main([]) == dvc_yaml.main(["--check"]) == 0
params = load_params()
assert upstream_of(params)["dummy"] >= {"pretrain", "encode", "shard"}
assert "dummy" in upstream_of(params)["report"]
assert "dummy" in {cost.stage for cost in make_plan(params, Settings(), "test").costs}
paths.SMALL.mkdir(parents=True)
(paths.SMALL / "weights").write_text("some")
write_manifest(paths.SMALL)
assert run_stage(stage_of("dummy", params), params) == {"files": 2.0}
assert [cost["name"] for cost in measured_costs(params)] == ["dummy"]
"""


def test_a_stage_is_added_by_one_module_and_one_row(tmp_path: Path) -> None:
    for name in (*ROOMS, "flows"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    values = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (tmp_path / "tasks" / "dummy.py").write_text(DUMMY, encoding="utf-8")
    rows = tmp_path / "tasks" / "stages.py"
    text = rows.read_text(encoding="utf-8")
    assert text.count(REPORT) == 1
    rows.write_text(text.replace(REPORT, ROW), encoding="utf-8")
    nowhere = "http://127.0.0.1:9"  # where no MLflow is: what the stage reports waits on disk
    own = {"PYTHONPATH": str(tmp_path), "PREFECT_HOME": str(tmp_path / ".prefect"), "MLFLOW_TRACKING_URI": nowhere}
    command, environment = [sys.executable, "-c", KNOWN], os.environ | own
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=PATIENCE_SECONDS)
    written = yaml.safe_load((tmp_path / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["dummy"]
    assert written == {
        "cmd": "python -m tasks.dummy",
        "deps": ["tasks/dummy.py", "outputs/small"],
        "params": [],
        "outs": ["outputs/dummy"],
    }


def test_a_stage_that_dvc_yaml_does_not_have_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.building.dvc_lock import DvcLock
    from tasks.system.errors import UserError

    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    monkeypatch.chdir(tmp_path)
    stages = {"dummy": Stage("dummy", Path("outputs/dummy"), (), ())}
    with pytest.raises(
        UserError, match=r"dvc\.yaml does not have the stage dummy of tasks/stages\.py: run make dvc\.yaml"
    ):
        DvcLock(tmp_path, stages)


def test_a_member_of_a_family_has_its_item_in_name_command_and_paths(params: Params) -> None:
    stage = stages_of(replace(params, prune=replace(params.prune, depths=(2,))))["finetune@2"]
    assert (stage.command, stage.output) == ("python -m tasks.finetune --depth 2", Path("outputs/finetuned-2"))
    assert stage.inputs == (Path("outputs/pruned-2"), Path("outputs/grown"), Path("outputs/encoded"))
    assert name_of(stage.command) == stage.name
    assert table.sections_of("finetune") == frozenset(stage.sections)

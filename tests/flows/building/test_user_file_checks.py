"""Paths in params.yaml that lead nowhere, or to something else, are named before any work, all in one line."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows import full_pipeline, sweep
from flows.building.user_file_checks import CHECKS, PICTURES, refuse_wrong_paths
from flows.sweeps.points import expand
from flows.sweeps.sweep_file import SWEEPS, read_sweep
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, PROFILES, apply_overrides, build_params, read_yaml
from tasks.stages import TABLE, stages_of
from tasks.system.errors import UserError
from tests.helpers.published_folders import PATHS, write_folders, write_transformer
from tests.helpers.small_workspace import PROJECT

EVALUATION = {key: name for key, name in PATHS.items() if key not in ("shard.path", "autoencoder.path")}
"""The keys that no stage before the judge and the evaluation reads, but for the text encoder's."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file that params.yaml can name, as the real libraries write them."""
    root = tmp_path_factory.mktemp("published") / "models"
    write_folders(root, pictures=4)
    write_transformer(root / "sana", 2, 32, 4, 16)
    return root


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of params, profiles and dvc.yaml alone, as the working directory."""
    for name in (str(PARAMS_FILE), "dvc.yaml", str(PROFILES)):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def overrides(root: Path, **changes: str) -> dict[str, Any]:
    """Overrides that name every published folder below `root`; `changes` are by the key with `__` for the dot."""
    detector = next(key for key in PATHS if key.endswith("clip_path")).split(".")[0]
    named = {key: str(root / name) for key, name in PATHS.items()} | {"pretrain.path": str(root / "sana")}
    kinds = {"shard.source": "sana", "judge.kind": "vision_language", f"{detector}.detector": "mask2former"}
    return named | kinds | {key.replace("__", "."): value for key, value in changes.items()}


def params_of(root: Path, **changes: str) -> Params:
    values = apply_overrides(read_yaml(PROJECT / PARAMS_FILE), overrides(root, **changes), "test")
    return build_params(values, "test")


def complaint(params: Params, *stages: str) -> str:
    """What is said of the paths that these stages read, or all stages; nothing if all is well."""
    every = stages_of(params)
    try:
        refuse_wrong_paths([([every[name] for name in stages or every], params)])
    except UserError as error:
        return str(error)
    return ""


def test_every_path_that_a_stage_reads_has_a_check() -> None:
    keys = {key for stage in TABLE for key in stage.user_files}
    pictures = {"shard.path", "data.sets.{item}.path"}
    assert keys > pictures and keys - pictures <= CHECKS.keys()


def test_every_check_is_of_a_key_of_params() -> None:
    values = read_yaml(PROJECT / PARAMS_FILE)
    for key in CHECKS:
        section, name = key.split(".")
        assert name in values[section], key


def test_folders_as_the_libraries_write_them_pass(models: Path) -> None:
    assert complaint(params_of(models)) == ""


def test_all_wrong_paths_are_named_in_one_line(tmp_path: Path) -> None:
    said = complaint(params_of(tmp_path / "nowhere"))
    assert "\n" not in said and said.startswith("params.yaml: shard.path: ")
    for key, name in PATHS.items():
        assert f"{key}: {tmp_path / 'nowhere' / name}" in said
    assert "pretrain.path: " in said


def test_a_run_that_stops_before_the_evaluation_checks_no_path_that_it_does_not_read(models: Path) -> None:
    wrong = {key.replace(".", "__"): "nowhere" for key in EVALUATION if key != "text_encoder.path"}
    params = params_of(models, **wrong)
    assert complaint(params, "shard", "autoencoder", "text_encoder", "encode", "pretrain") == ""
    assert "judge.path: " in complaint(params, "shard", "judge")


def put(name: str, text: str = "") -> Callable[[Path], None]:
    """Writes a file into the folder."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return write


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    """Does one step after the other."""

    def write(folder: Path) -> None:
        for step in steps:
            step(folder)

    return write


WRONG_CLASS = both(put("config.json", '{"_class_name": "AutoencoderKL"}'), put("m.safetensors"))
WRONG_TYPE = both(put("config.json", '{"model_type": "vit"}'), put("m.safetensors"), put("preprocessor_config.json"))


@pytest.mark.parametrize(
    ("key", "write", "said"),
    [
        ("autoencoder.path", put("model.bin"), "holds no config.json: name a folder that holds a diffusers Autoenc"),
        ("autoencoder.path", put("config.json", "{}"), "holds no *.safetensors"),
        ("autoencoder.path", WRONG_CLASS, "config.json is not of a diffusers AutoencoderDC"),
        ("autoencoder.path", both(put("config.json", "{"), put("m.safetensors")), "config.json cannot be read"),
        ("text_encoder.path", put("config.json", "{}"), "holds no tokenizer.json or tokenizer.model"),
        ("judge.path", put("model.bin"), "holds no config.json: name a folder that holds a vision-language model"),
        ("clip_path", WRONG_TYPE, "holds no tokenizer.json or vocab.json"),
        ("mask2former_path", WRONG_TYPE, "config.json is not of a Mask2Former"),
        ("pretrain.path", put("model.bin"), "holds no *.safetensors: name a .pth, a .safetensors or a folder"),
        ("prompts", put("prompts.jsonl"), "is no file: name one that holds prompts"),
        ("inception_path", put("inception.pt"), "is no file: name a TorchScript file of Inception"),
        ("dpg_questions", put("dpg.csv"), "cannot be read"),
        ("shard.path", put("0.tar"), "wids-meta.json is missing"),
    ],
)
def test_a_folder_that_lacks_something_is_named_with_what_it_lacks(
    models: Path, tmp_path: Path, key: str, write: Callable[[Path], None], said: str
) -> None:
    write(tmp_path / "wrong")
    (full,) = [name for name in (*PATHS, "pretrain.path") if key in (name, name.split(".")[1])]
    error = complaint(params_of(models, **{full.replace(".", "__"): str(tmp_path / "wrong")}))
    assert error.startswith(f"params.yaml: {full}: {tmp_path / 'wrong'}") and said in error


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("\n\n", "is empty"), ('{"prompt": "a"}\nnot json\n', "line 2 is no JSON object")],
)
def test_a_file_of_prompts_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    put("prompts.jsonl", text)(tmp_path)
    check = next(check for key, check in CHECKS.items() if key.endswith(".prompts"))
    assert said in check(tmp_path / "prompts.jsonl")


def test_a_file_that_is_no_torchscript_and_questions_without_a_prompt_s_text_are_named(
    models: Path, tmp_path: Path
) -> None:
    torch.save({}, tmp_path / "weights.pt")
    put("text.pt", "text")(tmp_path)
    check = CHECKS["evaluation.inception_path"]
    assert "weights.pt is no TorchScript file, though torch may have written it" in check(tmp_path / "weights.pt")
    assert check(tmp_path / "text.pt").endswith("text.pt is no TorchScript file: name one of Inception")
    questions = (models / "dpg_bench.csv").read_text()
    put("dpg.csv", questions.replace("a dog", ""))(tmp_path)
    assert "has a prompt without a text" in CHECKS["evaluation.dpg_questions"](tmp_path / "dpg.csv")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "holds no pictures"),
        (("a.jpg", "a.txt"), "holds 1 pictures: at least 2 are needed"),
        (("a.jpg", "b.jpg", ".b.txt"), "holds no captions: add a .txt beside each picture, or a metadata.jsonl"),
        (("a.jpg", "b.jpg", "a.txt"), ""),
        (("x/a.jpg", "x/y/b.jpg", "metadata.jsonl"), ""),
        (("a.jfif", "b.jfif", "a.txt", "b.txt"), ""),
    ],
)
def test_a_folder_must_hold_two_pictures_and_a_caption(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    for name in files:
        put(name)(tmp_path)
    problem = PICTURES["folder"](tmp_path)
    assert said in problem and bool(said) == bool(problem)


def test_shards_must_be_tars(tmp_path: Path) -> None:
    check = PICTURES["webdataset"]
    assert "is neither a file nor a folder" in check(tmp_path / "nowhere")
    put("notes.txt")(tmp_path)
    assert "holds no .tar" in check(tmp_path)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "notes.txt", "0.txt")
    assert check(tmp_path) == check(tmp_path / "0.tar") == ""
    put("sub/1.tar", "no tar")(tmp_path)
    assert "1.tar is no tar" in check(tmp_path / "sub")


def test_a_shard_that_sanas_list_names_must_be_there(models: Path, tmp_path: Path) -> None:
    meta = json.loads((models / "data/wids-meta.json").read_text())
    put("wids-meta.json", json.dumps(meta))(tmp_path)
    assert f"lacks 1 shards that wids-meta.json lists, {meta['shardlist'][0]['url']} first" in PICTURES["sana"](
        tmp_path
    )


def test_a_flow_refuses_wrong_paths_before_it_writes_anything(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text for key, value in overrides(Path("nowhere")).items() for text in ("-p", f"{key}={value}")]
    before = sorted(workspace.rglob("*"))
    assert full_pipeline.main(["--profile", "smoke", *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "shard.path: " in said and "judge.path: " in said
    assert sorted(workspace.rglob("*")) == before


def test_a_flow_that_stops_earlier_reads_fewer_paths(models: Path, workspace: Path) -> None:
    wrong = {key.replace(".", "__"): "nowhere" for key in EVALUATION if key != "text_encoder.path"}
    stages = full_pipeline.checked_stages("smoke", overrides(models, **wrong), None, "finetune")
    assert {"shard", "finetune@3", "finetune@2"} <= set(stages) and "judge" not in stages
    with pytest.raises(UserError, match=r"judge\.path: .*nowhere is no folder"):
        full_pipeline.checked_stages("smoke", overrides(models, **wrong), None, "judge")


def test_a_sweep_refuses_the_wrong_paths_of_its_points_once_each(
    models: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.sweeps.points.code_digest", lambda stage: stage)
    values = apply_overrides(read_yaml(PROJECT / PARAMS_FILE), overrides(models, autoencoder__path="nowhere"), "test")
    (workspace / PARAMS_FILE).unlink()
    (workspace / PARAMS_FILE).write_text(yaml.safe_dump(values))
    (workspace / SWEEPS).mkdir()
    grid = {"prune.depths": [[3], [2]]}
    (workspace / SWEEPS / "mine.yaml").write_text(yaml.safe_dump({"from": "prune", "grid": grid}))
    plan = read_sweep(workspace, "mine")
    points = expand(workspace, plan)
    with pytest.raises(UserError, match=r"^params\.yaml: autoencoder\.path: [^;]*nowhere is no folder[^;]*$"):
        sweep.refuse_wrong_paths_of(points, plan, "local")

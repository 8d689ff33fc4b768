"""Claims about parameters: every mistake is one line that names the file, the key and what to write instead."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.params.experiment_params import Params
from tasks.params.params_files import (
    PARAMS_FILE,
    PROFILES,
    apply_overrides,
    apply_profile,
    build_params,
    load_params,
    read_yaml,
    section_values,
)
from tasks.system.errors import UserError

ROOT = Path(__file__).parents[3]
DEFAULT = read_yaml(ROOT / PARAMS_FILE)
OWN_PICTURES = {"shard__path": "data", "evaluation__scorer": "geneval"}
ALL_PROFILES = sorted(path.stem for path in (ROOT / PROFILES).glob("*.yaml"))


def build(**overrides: Any) -> Params:
    """The default with `section__key=value` replaced or added."""
    values = {section: dict(pairs) for section, pairs in DEFAULT.items()}
    for name, value in overrides.items():
        section, key = name.split("__")
        values[section][key] = value
    return build_params(values, "params.yaml")


def profile(name: str) -> Params:
    return build_params(apply_profile(DEFAULT, name, ROOT / PROFILES), name)


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_the_default_loads() -> None:
    assert load_params(ROOT / PARAMS_FILE) == build()


def test_the_profiles_are_these() -> None:
    assert ALL_PROFILES == [
        "drawings",
        "gpu",
        "grow-published",
        "paper",
        "paper-1024",
        "prune-published",
        "sft",
        "smoke",
    ]


@pytest.mark.parametrize("name", ALL_PROFILES)
def test_every_profile_loads_and_changes_the_default(name: str) -> None:
    assert profile(name) != build()


@pytest.mark.parametrize("name", [None, *ALL_PROFILES])
def test_scenes_hold_out_as_many_prompts_as_importance_is_measured_on(name: str | None) -> None:
    params = profile(name) if name else build()
    if params.shard.source == "scenes":
        assert params.importance.prompts <= params.shard.heldout_samples


def test_the_papers_profile_is_the_papers() -> None:
    params = profile("paper")
    kept = params.pretrain.depth - round(params.pretrain.depth * params.grow.drop_share)
    assert (params.pretrain.depth, kept, params.grow.depth, params.prune.depths) == (20, 18, 60, (40, 30, 20))
    assert (params.network.hidden_size, params.network.linear_head_dim, params.network.cross_heads) == (2240, 32, 20)
    assert (params.train.optimizer, params.train.learning_rate, params.finetune.steps) == ("came8bit", 1e-4, 100)
    assert (params.sampling.sampler, params.sampling.steps, params.sampling.guidance) == ("flow_dpm-solver", 20, 4.5)
    assert (params.diffusion.flow_shift, params.text_encoder.max_tokens) == (3.0, 300)
    assert (params.geneval.detector, Path(str(params.geneval.prompts)).name) == (
        "mask2former",
        "evaluation_metadata.jsonl",
    )


def test_the_papers_fine_tuning_on_chosen_pairs_is_the_papers() -> None:
    params = profile("paper")
    sft, sets = params.sft, params.data.sets
    assert (sft.models, sft.data, sft.steps, sft.learning_rate) == (("grown",), "encoded-like_geneval", 10_000, 2e-5)
    assert params.shard_of("high_score") == replace(params.shard, min_caption_score=25.0)
    assert set(sets) == {"high_score", "like_geneval"} and params.data_sets == ("like_geneval",)


def test_the_cascade_continues_the_same_network_at_twice_the_side() -> None:
    low, high = profile("paper"), profile("paper-1024")
    assert (low.shard.image_size, high.shard.image_size) == (512, 1024)
    assert (high.network, high.diffusion, high.autoencoder) == (low.network, low.diffusion, low.autoencoder)
    assert high.text_encoder == low.text_encoder and high.pretrain.depth == high.grow.depth == low.grow.depth
    assert (high.pretrain.path, high.train.steps) == ("runs/paper/outputs/grown", 0)
    assert high.grow.drop_share == 0 and high.pretrain.learning_rate == 2e-5
    assert high.shard_of("like_geneval").image_size == 1024


def test_a_set_differs_from_shard_in_its_own_keys_alone_and_is_checked_as_shard_is() -> None:
    params = build(data__sets={"sft": {"train_samples": 7, "scene_tasks": ["counting"]}}, train__data="encoded-sft")
    assert params.shard_of("sft") == replace(params.shard, train_samples=7, scene_tasks=("counting",))
    assert params.shard_of(None) == params.shard and params.data_sets == ("sft",)
    assert build(data__sets={"sft": {}}, sft__data="encoded-sft").data_sets == ()  # sft has no models to train
    assert build(data__sets={"sft": {}}, sft__data="encoded-sft", sft__models=["small"]).data_sets == ("sft",)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data__sets": {"sft": {"train_sample": 7}}}, "data.sets.sft: unknown key 'train_sample': did you mean"),
        ({"data__sets": {"sft": {"image_size": "32"}}}, "data.sets.sft: image_size is '32' (str): it must be int"),
        ({"data__sets": {"sft": {"source": "folder"}}}, "data.sets.sft: path is None with source folder"),
        ({"data__sets": {"My set": {}}}, "sets has the name 'My set': it must begin with a small letter"),
        ({"train__data": "encoded-sft"}, "train.data is 'encoded-sft': choose from encoded, or add a set to data.sets"),
        ({"sft__models": ["pruned-5"]}, "sft.models names 'pruned-5': choose from small, grown, pruned-6, finetuned-6"),
        ({"sft__models": ["grown", "grown"]}, "name each model once"),
        ({"sft__models": ["small"], "workflow__baselines": ["grown"]}, "or add small or grown to workflow.baselines"),
        ({"data__sets": {1: {}}}, "sets has the name 1: it must begin with a small letter"),
        ({"finetune__bias_correction": True, "finetune__optimizer": "adamw"}, "adamw, which corrects by itself"),
        ({"judge_finetune__pictures_of": ["grown", "grown"]}, "each can be there once"),
        ({"shard__min_caption_score": 25.0}, "min_caption_score is 25.0 with source scenes: it is for source sana"),
        ({"shard__captions_per_sample": 0}, "captions_per_sample is 0: it must be above 0"),
        ({"shard__scene_tasks": ["colours"]}, "did you mean 'colors'?"),
    ],
)
def test_a_data_set_or_model_that_does_not_fit_is_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message(error).startswith("params.yaml: ") and part in message(error)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("grow__dept", "grow.depth"),
        ("prune__depth", "prune.depths"),
        ("finetune__learningrate", "finetune.learning_rate"),
    ],
)
def test_an_unknown_key_is_named_with_the_file_and_the_nearest_key(key: str, nearest: str) -> None:
    with pytest.raises(UserError) as error:
        build(**{key: 1})
    assert message(error) == f"params.yaml: unknown key {key.replace('__', '.')!r}: did you mean {nearest!r}?"


def test_an_unknown_section_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        build_params(DEFAULT | {"pruning": {}}, "params.yaml")
    assert message(error) == "params.yaml: unknown key 'pruning': did you mean 'prune'?"


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, pairs in DEFAULT.items() for key in pairs])
def test_every_key_is_required(section: str, key: str) -> None:
    values = DEFAULT | {section: {name: value for name, value in DEFAULT[section].items() if name != key}}
    with pytest.raises(UserError) as error:
        build_params(values, "params.yaml")
    assert f"params.yaml: key '{section}.{key}' is missing" in message(error)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("grow__depth", "12", "it must be int"),
        ("grow__depth", 12.0, "it must be int"),
        ("grow__depth", True, "it must be int"),
        ("train__learning_rate", "0.001", "it must be float"),
        ("network__qk_norm", "yes", "it must be bool"),
        ("prune__depths", 8, "it must be list"),
        ("prune__depths", [8, "6"], "it must be int"),
        ("grow__strategy", "cyclc", "did you mean 'cyclic'?"),
        ("train__optimizer", None, "it must be one of"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_it_must_be(key: str, value: Any, part: str) -> None:
    with pytest.raises(UserError) as error:
        build(**{key: value})
    assert message(error).startswith(f"params.yaml: {key.replace('__', '.')} is ")
    assert part in message(error)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"compute__threads": 0}, "compute.threads is 0"),
        ({"network__hidden_size": 128, "network__linear_head_dim": 24}, "network.hidden_size is 128"),
        ({"shard__source": "scenes", "shard__path": "data"}, "shard.path is 'data'"),
        ({"shard__source": "folder", "shard__path": None}, "shard.path is None"),
        (
            OWN_PICTURES | {"shard__source": "folder"},
            "evaluation.scorer is geneval with shard.source folder",
        ),
        (
            OWN_PICTURES | {"shard__source": "webdataset"},
            "evaluation.scorer is geneval with shard.source web",
        ),
        (OWN_PICTURES | {"shard__source": "sana"}, "evaluation.scorer is geneval with shard.source sana"),
        ({"train__steps": 10, "train__warmup_steps": 11}, "train.warmup_steps is 11"),
        ({"train__batch_size": 64, "train__grad_accumulation": 3}, "train.batch_size"),
        ({"importance__times": [0.5, 1.0]}, "importance.times is (0.5, 1.0)"),
        ({"importance__times": []}, "importance.times is"),
        ({"importance__prompts": 99}, "importance.prompts is 99"),
        ({"prune__depths": [2, 2]}, "prune.depths is (2, 2)"),
        ({"prune__depths": []}, "prune.depths is ()"),
        ({"grow__depth": 9, "prune__depths": [9]}, "prune.depths"),
        ({"grow__depth": 3, "pretrain__depth": 4, "prune__depths": [2]}, "grow.depth 3 is below pretrain.depth 4"),
        ({"train__steps": -1}, "train.steps is -1"),
        ({"train__clip_norm": 0}, "train.clip_norm is 0.0"),
        ({"train__weights": "bfloat16"}, "train.ema_decay is 0.995 with weights bfloat16"),
        ({"train__weights": "bfloat16", "train__optimizer": "adamw"}, "train.weights is bfloat16 with optimizer adamw"),
        (
            {"train__weights": "bfloat16", "train__ema_decay": 0, "compute__dtype": "float32"},
            "train.weights is bfloat16 with compute.dtype float32",
        ),
        ({"train__step_in_backward": True}, "train.clip_norm is 1.0 with step_in_backward"),
        (
            {"train__step_in_backward": True, "train__clip_norm": None, "train__grad_accumulation": 2},
            "train.grad_accumulation is 2 with step_in_backward",
        ),
        (
            {"train__step_in_backward": True, "train__optimizer": "adamw8bit"},
            "train.optimizer is adamw8bit with step_in_backward",
        ),
        ({"compute__nodes": 0}, "compute.nodes is 0"),
        (
            {"compute__parallelism": "fsdp"},
            "compute.parallelism is 'fsdp': it must be one of ['ddp', 'fully_shard', 'hybrid_shard']",
        ),
        ({"compute__processes_per_node": 3}, "pretrain.batch_size is 64 on 3 processes"),
        ({"compute__nodes": 2, "train__grad_accumulation": 64}, "train.batch_size is 64 on 2 processes"),
        (
            {"compute__processes_per_node": 2, "train__step_in_backward": True, "train__clip_norm": None},
            "train.step_in_backward is true on 2 processes",
        ),
        (
            {
                "compute__processes_per_node": 2,
                "compute__parallelism": "fully_shard",
                "finetune__optimizer": "adamw8bit",
            },
            "finetune.optimizer is adamw8bit with compute.parallelism fully_shard",
        ),
        ({"pretrain__steps": 0, "pretrain__warmup_steps": 0}, "pretrain.steps is 0 and path is None"),
        ({"workflow__baselines": ["small"]}, "workflow.baselines is ['small']"),
        ({"workflow__baselines": ["grown", "grown"]}, "workflow.baselines is ['grown', 'grown']"),
        ({"judge__kind": "vision_language"}, "judge.path is None with kind vision_language"),
        ({"judge__path": "checkpoints/judge"}, "judge.path is 'checkpoints/judge' with kind trained"),
        ({"judge__time_limit": 0}, "judge.time_limit is 0"),
        ({"evaluation__adaptive_means": [2, 1]}, "evaluation.adaptive_means is (2.0, 1.0)"),
        ({"evaluation__keep": 2}, "evaluation.keep is 2: it must be one of [1, 4]"),
        ({"evaluation__images_per_prompt": 16, "evaluation__best_of": [1, 32]}, "evaluation.best_of is (1, 32)"),
        ({"geneval__clip_path": "clip"}, "geneval.clip_path is 'clip' with detector scenes"),
        ({"geneval__detector": "mask2former"}, "geneval.mask2former_path is None with detector mask2former"),
        (
            {
                "geneval__detector": "mask2former",
                "geneval__mask2former_path": "a",
                "geneval__clip_path": "b",
            },
            "geneval.prompts is None with detector mask2former",
        ),
    ],
)
def test_a_value_out_of_range_is_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message(error).startswith(f"params.yaml: {part}")


def test_an_unknown_key_in_a_profile_names_the_profiles_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("finetune:\n  step: 3\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        apply_profile(DEFAULT, "mine", tmp_path)
    assert message(error) == f"{tmp_path / 'mine.yaml'}: unknown key 'finetune.step': did you mean 'finetune.steps'?"


def test_a_profile_is_laid_over_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("finetune: {steps: 31, batch_size: 2}\ngrow: {depth: 9}\n", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("extends: base\nfinetune: {steps: 37}\n", encoding="utf-8")
    values = apply_profile(DEFAULT, "mine", tmp_path)
    assert (values["finetune"]["steps"], values["finetune"]["batch_size"], values["grow"]["depth"]) == (37, 2, 9)
    assert values["train"] == DEFAULT["train"]


def test_a_profile_that_extends_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: two\n", encoding="utf-8")
    (tmp_path / "two.yaml").write_text("extends: one\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        apply_profile(DEFAULT, "one", tmp_path)
    assert message(error) == f"{tmp_path / 'one.yaml'} extends itself by way of one, two: take out one extends"


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=rf"'smok' is unknown.*{', '.join(ALL_PROFILES)}"):
        apply_profile(DEFAULT, "smok", ROOT / PROFILES)


@pytest.mark.parametrize("text", ["7e-5", "-1E+2", "3e0"])
def test_a_number_with_an_exponent_and_no_dot_is_a_number(text: str) -> None:
    values = apply_overrides(DEFAULT, {"diffusion.logit_mean": yaml.safe_load(text)}, "overrides")
    assert build_params(values, "params.yaml").diffusion.logit_mean == float(text)


def test_an_override_changes_its_key_alone_and_not_the_values_given() -> None:
    merged = apply_overrides(DEFAULT, {"finetune.steps": 50}, "override")
    assert merged["finetune"].pop("steps") == 50
    assert merged == DEFAULT | {"finetune": {k: v for k, v in DEFAULT["finetune"].items() if k != "steps"}}
    assert build_params(DEFAULT, "params.yaml") == build()


@pytest.mark.parametrize(
    ("text", "part"),
    [(None, "is missing"), ("grow: [", "is not valid YAML"), ("- grow", "holds no mapping"), ("", "holds no mapping")],
)
def test_an_unreadable_file_is_named(tmp_path: Path, text: str | None, part: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_params(path)
    assert message(error).startswith(f"{path} ") and part in message(error)


def test_a_section_that_is_no_mapping_is_named() -> None:
    with pytest.raises(UserError) as error:
        build_params(DEFAULT | {"grow": 12}, "params.yaml")
    assert message(error) == "params.yaml: grow is 12: it must be a mapping of keys"


def test_section_values_are_whole_sections_and_single_keys() -> None:
    params = build(compute__seed=3, prune__depths=[3, 2], prune__random_choices=7)
    values = section_values(params, ("compute.seed", "prune"))
    assert values == {"compute.seed": 3, "prune": {"depths": (3, 2), "random_choices": 7}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"shard:\n  seed: 1\n  seed: 2\n", "the key 'seed' is there twice"),
        (b"shard: {}\nshard: {}\n", "the key 'shard' is there twice"),
        ("shard: {}\n".encode("utf-16"), "not UTF-8"),
        ("shard: {path: münchen}\n".encode("latin-1"), "not UTF-8"),
        (b"shard: {day: 2020-99-99}\n", "not valid YAML"),
        (b"shard: " + b"[" * 5000, "not valid YAML"),
        (b"shard: {seed: " + b"1" * 5000 + b"}\n", "not valid YAML"),
    ],
)
def test_params_that_could_be_read_in_two_ways_or_not_at_all_are_one_line(
    data: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_bytes(data)
    with pytest.raises(UserError, match=says) as refused:
        read_yaml(tmp_path / "params.yaml")
    assert "params.yaml" in message(refused)


def test_params_with_a_byte_order_mark_are_read_without_it(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbfshard: {seed: 1}\n")
    assert read_yaml(tmp_path / "params.yaml") == {"shard": {"seed": 1}}


def test_any_damage_to_params_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    draws, whole = random.Random(5), b"shard: {path: null, seed: 12}\ntrain:\n  steps: [1, 2]\n  rate: 1.0e-3\n"
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draws.randint(1, 4)):
            damaged[draws.randrange(len(damaged))] = draws.choice(b"\x00\xff:[{&*!?-'\"\n\t09")
        (tmp_path / "params.yaml").write_bytes(damaged[: draws.randint(0, len(damaged))])
        try:
            read_yaml(tmp_path / "params.yaml")
        except UserError as error:
            assert "\n" not in str(error)

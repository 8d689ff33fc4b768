"""Claims about the vision-language judge, on models of real transformers classes with a few thousand random weights."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from tasks import evaluate as evaluate
from tasks.computing import ranks
from tasks.evaluation.judges import vision_language_judge
from tasks.evaluation.judges.judge_answers import ScoreCache
from tasks.evaluation.judges.judge_choice import TrainedJudge, open_judge
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork, load_judge, log_yes, save_judge
from tasks.evaluation.judges.judge_template import QUESTION
from tasks.evaluation.judges.vision_language_judge import (
    VisionLanguageJudge,
    load_vision_language_judge,
    picture_digest,
    score,
)
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.picture_pool import load_pool
from tasks.params.user_files import paths_of
from tasks.stages import stage_of
from tasks.system import paths
from tasks.system.errors import UserError
from tests.helpers.drawing_workspace import all_bytes, run, write_workspace
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.tiny_vision_language import save_idefics3, save_llava, save_with_own_code
from tests.kernels.processes import run_processes

PROJECT = Path(__file__).parents[3]
KINDS = {"llava": save_llava, "idefics3": save_idefics3}
PROMPTS = ["a photo of a red circle", "a ring", "a photo of three triangles left of a yellow square"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a model of each kind; not to be changed by a test."""
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in KINDS.items()}


@pytest.fixture
def any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models rarely say yes or no: take whatever they say."""
    monkeypatch.setattr(vision_language_judge, "LEAST_ANSWER_MASS", 1e-9)


def load(folder: Path, cache: Path, **options: object) -> VisionLanguageJudge:
    chosen = {"batch_size": 4, "time_limit": 60.0, "dtype": "float32", "device": "cpu"} | options
    return load_vision_language_judge(folder, cache=ScoreCache(cache), **chosen)


def pictures(prompts: int = 3, images: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (prompts, images, 24, 24, 3), dtype=np.uint8)


@contextmanager
def counted(judge: VisionLanguageJudge) -> Iterator[list[int]]:
    """How many questions each forward pass of the model answers."""
    rows: list[int] = []
    hook = judge.answerer.network.register_forward_pre_hook(
        lambda _module, _args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    yield rows
    hook.remove()


def plainly(folder: Path, picture: np.ndarray, prompt: str) -> float:
    """log P(yes) among yes and no of one picture: no padding, no batch, the whole model and all sums in float64."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION.format(prompt=prompt)}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[[Image.fromarray(picture)]], return_tensors="pt").to(torch.float64)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].tolist()
    known = processor.tokenizer.get_vocab()
    yes, no = ([logits[known[f"{space}{word}"]] for space in ("", "Ġ") for word in words] for words in ANSWERS)
    most = max(yes + no)
    yes_mass, no_mass = (math.fsum(math.exp(logit - most) for logit in side) for side in (yes, no))
    return math.log(yes_mass / (yes_mass + no_mass))


ANSWERS = (("yes", "Yes"), ("no", "No"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("any_answer")
def test_score_is_the_normalised_log_probability_of_yes(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shown = pictures()
    found = load(folders[kind], tmp_path / "cache").log_yes(shown, PROMPTS)
    expected = [
        [plainly(folders[kind], one, prompt) for one in row] for row, prompt in zip(shown, PROMPTS, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert found.std() > 0.01 and (found < 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("any_answer")
def test_a_batch_answers_as_its_questions_alone(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    batched = load(folders[kind], tmp_path / "one", batch_size=9).log_yes(pictures(), PROMPTS)
    alone = load(folders[kind], tmp_path / "other", batch_size=1).log_yes(pictures(), PROMPTS)
    np.testing.assert_allclose(batched, alone, atol=1e-4)


def test_as_many_judgements_as_pictures_and_none_twice(folders: dict[str, Path], tmp_path: Path) -> None:
    shown = pictures(3, 4)
    shown[0, 1] = shown[0, 0]
    judge = load(folders["llava"], tmp_path / "cache")
    with counted(judge) as rows:
        first = judge.log_yes(shown, PROMPTS)
    assert sum(rows) == 3 * 4 - 1 and len(rows) == 3
    again = load(folders["llava"], tmp_path / "cache")
    with counted(again) as rows:
        np.testing.assert_array_equal(again.log_yes(shown, PROMPTS), first)
        assert rows == []
        again.log_yes(shown[:1], [PROMPTS[1]])  # the same pictures, another prompt
    assert sum(rows) == 3


@pytest.mark.usefixtures("any_answer")
def test_a_killed_evaluation_resumes_to_the_same_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    shown = pictures(3, 3)
    whole = load(folders["llava"], tmp_path / "whole").log_yes(shown, PROMPTS)
    judge = load(folders["llava"], tmp_path / "cut")
    with counted(judge) as rows:
        stop = judge.answerer.network.register_forward_pre_hook(lambda *_: stop_after(rows, 2))
        with pytest.raises(KeyboardInterrupt):
            judge.log_yes(shown, PROMPTS)
        stop.remove()
    with counted(judge) as rows:
        np.testing.assert_array_equal(judge.log_yes(shown, PROMPTS), whole)
    assert rows == [4, 1]


@pytest.mark.usefixtures("any_answer")
def test_ranks_that_share_the_batches_get_the_numbers_of_one_process(folders: dict[str, Path], tmp_path: Path) -> None:
    def ask(folder: Path) -> None:
        judge = load(folders["idefics3"], folder / f"cache-{ranks.world_size()}", batch_size=2)
        with counted(judge) as rows:
            scores = judge.log_yes(pictures(), PROMPTS)
        np.save(folder / f"{ranks.world_size()}-{ranks.rank()}.npy", scores)
        assert sum(rows) == [9, 5, 4][ranks.rank() + (ranks.world_size() > 1)]  # of five batches

    ask(tmp_path)
    run_processes(2, tmp_path, ask)
    one, *two = (np.load(tmp_path / name) for name in ("1-0.npy", "2-0.npy", "2-1.npy"))
    assert all(np.array_equal(one, other) for other in two) and np.isfinite(one).all()


def stop_after(rows: list[int], count: int) -> None:
    if len(rows) == count:
        raise KeyboardInterrupt


def test_an_answer_that_is_neither_is_an_abstention() -> None:
    assert math.isnan(score((math.log(0.006), math.log(0.002))))
    assert score((math.log(0.06), math.log(0.02))) == pytest.approx(math.log(0.75))
    assert math.isnan(score((-math.inf, -math.inf))) and math.isnan(score(None))
    assert score((-math.inf, math.log(0.5))) == -math.inf


@pytest.mark.usefixtures("any_answer")
def test_a_batch_out_of_time_abstains_and_is_asked_again(folders: dict[str, Path], tmp_path: Path) -> None:
    shown = pictures(1, 6)
    expected = load(folders["llava"], tmp_path / "other").log_yes(shown, PROMPTS[:1])
    judge = load(folders["llava"], tmp_path / "cache", time_limit=10.0)
    started, finished = [0], [0]
    layers = judge.answerer.network.model.language_model.layers
    hooks = [
        layers[0].register_forward_pre_hook(lambda *_: started.append(started[-1] + 1)),
        layers[1].register_forward_pre_hook(lambda *_: finished.append(finished[-1] + 1)),
    ]
    with pytest.MonkeyPatch.context() as patch:  # the first batch finds 100 seconds gone in its first layer
        patch.setattr(vision_language_judge.time, "monotonic", lambda: 100.0 * min(started[-1], 1))
        first = judge.log_yes(shown, PROMPTS[:1])
    for hook in hooks:
        hook.remove()
    assert np.isnan(first[0, :4]).all() and not np.isnan(first[0, 4:]).any()
    assert (started[-1], finished[-1]) == (2, 1)  # it was given up between two layers, and the next one was not
    with counted(judge) as rows:
        np.testing.assert_array_equal(judge.log_yes(shown, PROMPTS[:1]), expected)
    assert rows == [4]


def test_pictures_of_the_same_bytes_and_other_sizes_differ() -> None:
    picture = pictures()[0, 0]
    digests = {picture_digest(picture), picture_digest(picture.reshape(12, 48, 3)), picture_digest(picture[::-1])}
    assert len(digests) == 3 and picture_digest(picture[::-1][::-1]) in digests


def test_a_flipped_bit_makes_another_judge(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    before = load(folder, tmp_path / "cache").digest
    assert load(folder, tmp_path / "cache").digest == before
    assert load(folder, tmp_path / "cache", dtype="bfloat16").digest != before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-9] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert load(folder, tmp_path / "cache").digest != before


def test_code_of_a_folder_runs_only_where_it_is_switched_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, marker = save_llava(tmp_path / "model"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "home_made", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlavaConfig\nPath({str(marker)!r}).touch()\n\n\n"
        "class OwnConfig(LlavaConfig):\n    model_type = 'home_made'\n"
    )
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(UserError, match=r"code of its own, which is not run: set judge\.remote_code to true"):
        load(folder, tmp_path / "cache")
    assert not marker.exists()
    with pytest.raises(UserError):  # it is no configuration of any vision-language class, but it is read
        load(folder, tmp_path / "cache", remote_code=True)
    assert marker.exists()


def test_the_question_is_the_published_one_word_for_word() -> None:
    prompt = "a photo of a bench"
    # The pick script of the published code's tools/inference_scaling, as it writes its question.
    published = f"""You are an AI assistant specializing in image analysis and ranking. Your task is to analyze and compare image based on how well they match the given prompt.
The given prompt is:{prompt}. Please consider the prompt and the image to make a decision and response directly with 'yes' or 'no'.
"""  # noqa: E501
    assert QUESTION.format(prompt=prompt) == published


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model brings its own code, as NVILA's does."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return save_with_own_code(tmp_path / "model")


@pytest.mark.usefixtures("any_answer")
def test_a_model_with_code_of_its_own_is_asked_as_the_published_script_asks_it(own_code: Path, tmp_path: Path) -> None:
    shown = pictures()
    found = load(own_code, tmp_path / "cache", remote_code=True).log_yes(shown, PROMPTS)
    network = AutoModel.from_pretrained(own_code, trust_remote_code=True)
    ids = [network.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no")]
    for row, prompt, expected in zip(shown, PROMPTS, found, strict=True):
        for picture, one in zip(row, expected, strict=True):
            _, scores = network.generate_content([Image.fromarray(picture), QUESTION.format(prompt=prompt)])
            yes, no = (scores[0][0, place].item() for place in ids)
            assert one == pytest.approx(-math.log1p(math.exp(no - yes)), abs=1e-6)
    assert found.std() > 0.01 and len(network.asked) == 9


@pytest.mark.usefixtures("any_answer")
def test_the_code_of_a_folder_reads_what_transformers_reads(own_code: Path, tmp_path: Path) -> None:
    theirs = load(own_code, tmp_path / "one", remote_code=True).answerer
    ours = load(own_code / "llm", tmp_path / "other").answerer
    shown, asked = pictures()[:, 0], [QUESTION.format(prompt=prompt) for prompt in PROMPTS]
    with torch.no_grad():
        torch.testing.assert_close(theirs.answer_logits(shown, asked), ours.answer_logits(shown, asked))
    assert {*theirs.yes, *theirs.no} < {*ours.yes, *ours.no}  # the published script reads "yes" and "no" alone


def test_code_of_its_own_does_not_run_unless_it_is_switched_on(own_code: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"code of its own, which is not run: set judge\.remote_code to true"):
        load(own_code, tmp_path / "cache")
    assert not (tmp_path / "modules").exists()


@pytest.mark.parametrize(
    ("written", "instead", "line"),
    [
        ("decoded, made.scores", "decoded", "answers without scores"),
        ("def generate_content", "def answer", "has a model without generate_content"),
        ("self.tokenizer =", "self.words =", "has a model without tokenizer"),
        ("import torch", "import torch_of_another_time", "cannot be loaded as a vision-language model"),
    ],
)
def test_own_code_that_cannot_be_asked_is_named_in_one_line(
    own_code: Path, tmp_path: Path, written: str, instead: str, line: str
) -> None:
    code = (own_code / "modeling_own.py").read_text()
    assert code.count(written) >= 1
    (own_code / "modeling_own.py").write_text(code.replace(written, instead))
    with pytest.raises(UserError, match=line) as error:
        load(own_code, tmp_path / "cache", remote_code=True).log_yes(pictures(), PROMPTS)
    assert str(own_code) in str(error.value) and "\n" not in str(error.value)


def drop_weight(path: Path) -> None:
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("lm_head.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, path, {"format": "pt"})


def break_weight(path: Path) -> None:
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("lm_head.weight"))
    weights[name][0, 0] = torch.nan
    save_file(weights, path, {"format": "pt"})


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        (lambda folder: None, {"chat": None}, "has no chat template"),
        (lambda folder: None, {"answers": ("yes", "maybe")}, "has no single token for 'no'"),
        (without("model.safetensors"), {}, "cannot be loaded"),
        (without("processor_config.json"), {}, "cannot be loaded|has no processor"),
        (without("tokenizer.json"), {}, "cannot be loaded|has no processor"),
        (without("config.json"), {}, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 40), {}, "cannot be loaded"),
        (lambda folder: drop_weight(folder / "model.safetensors"), {}, "lacks 1 weights of its model, lm_head.weight"),
        (
            lambda folder: break_weight(folder / "model.safetensors"),
            {},
            r"lm_head\.weight holds numbers that are not fi",
        ),
    ],
)
def test_what_is_no_judge_is_said_in_one_line(
    change: Callable[[Path], None], options: dict[str, object], line: str, tmp_path: Path
) -> None:
    folder = save_llava(tmp_path / "model", **options)
    change(folder)
    with pytest.raises(UserError, match=line) as error:
        load(folder, tmp_path / "cache")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder, marker = save_llava(tmp_path / "model"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"payload": Payload(str(marker))}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot be loaded.*no file named model\.safetensors"):
        load(folder, tmp_path / "cache")
    assert not marker.exists()


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (self.path, 0o700)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is no model.s file or folder"):
        load(tmp_path / "nothing", tmp_path / "cache")


WRITER = """
import sys
from pathlib import Path
from tasks.evaluation.judges.judge_answers import ScoreCache
cache, name = ScoreCache(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
for batch in range(int(sys.argv[3])):
    cache.put(((name, f"{batch} {i}", "judge"), (-batch - i / 8, -float(i))) for i in range(8))
"""


def writer(path: Path, name: str, batches: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(batches)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    writers = [writer(tmp_path / "cache", name, 12) for name in "abc"]
    assert [process.wait(timeout=PATIENCE_SECONDS) for process in writers] == [0, 0, 0]
    keys = [(name, f"{batch} {i}", "judge") for name in "abc" for batch in range(12) for i in range(8)]
    expected = [(-batch - i / 8, -float(i)) for _ in "abc" for batch in range(12) for i in range(8)]
    assert ScoreCache(tmp_path / "cache").get(keys) == expected
    assert ScoreCache(tmp_path / "cache").get([("a", "0 0", "another judge")]) == [None]


def test_a_cache_whose_writer_was_killed_holds_whole_batches(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "cache")
    process = writer(cache.path, "a", 100_000)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    while cache.get([("a", "5 0", "judge")]) == [None]:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = 0
    while cache.get([("a", f"{last} 0", "judge")]) != [None]:
        keys = [("a", f"{last} {i}", "judge") for i in range(8)]
        assert cache.get(keys) == [(-last - i / 8, -float(i)) for i in range(8)]
        last += 1
    assert last > 5 and cache.get([("a", f"{last} {i}", "judge") for i in range(8)]) == [None] * 8
    for answer in ((-1.0, -2.0), (-3.0, -math.inf)):  # two processes may have asked at the same time
        cache.put([(("b", "0", "judge"), answer)])
        assert cache.get([("b", "0", "judge")]) == [answer]


def test_a_broken_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"cache cannot be used \(.*\): delete it"):
        ScoreCache(tmp_path / "cache").get([("a", "b", "c")])


def test_stages_ask_the_vision_language_judge_and_the_cache_answers_the_second_time(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_answer: None
) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_workspace()
    chosen = replace(params.judge, kind="vision_language", path=str(folders["llava"]), batch_size=16)
    params = replace(params, judge=chosen)
    assert (paths_of(stage_of("judge", params).user_files, params)) == [str(folders["llava"])]
    metrics, folder = run(stage_of("judge", params), params, Path("recorded"))
    assert set(all_bytes(folder)) == {"vision_language.json", "calibration.safetensors"}
    assert set(metrics) == {"unseen_yes_share"}  # 0 here, so that there is no AUC
    (paths.JUDGE / "config.json").unlink()
    (folder / "vision_language.json").rename(paths.JUDGE / "vision_language.json")
    _, first = run(stage_of("evaluate", params, "small"), params)
    judged = load_pool(first).judged_PN
    with monkeypatch.context() as patch:
        patch.setattr(VisionLanguageJudge, "_ask", lambda *_: pytest.fail("asked again"))
        _, second = run(stage_of("evaluate", params, "small"), params, Path("again"))
    assert all_bytes(first) == all_bytes(second)
    encoder = load_painter(paths.SMALL, params, "cpu").text_encoder
    judge = open_judge(paths.JUDGE, encoder, params.compute.dtype, "cpu")
    pool = load_pool(first)
    texts = [prompt.text for prompt in pool.prompts]
    np.testing.assert_array_equal(judge.log_yes(pool.pictures_PNHW3, texts), judged)


def test_a_recorded_judge_that_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_workspace()
    model = save_llava(tmp_path / "model")
    params = replace(params, judge=replace(params.judge, kind="vision_language", path="model"))
    _, folder = run(stage_of("judge", params), params, Path("recorded"))
    (model / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match=r"is not the judge that .* names: run python -m tasks\.judge"):
        open_judge(folder, load_painter(paths.SMALL, params, "cpu").text_encoder, "float32", "cpu")


def test_the_trained_judge_is_asked_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = load_painter(paths.SMALL, write_workspace(), "cpu").text_encoder
    save_judge(JudgeNetwork(JudgeConfig(encoder.channels)), tmp_path)
    judge = open_judge(tmp_path, encoder, "float32", "cpu")
    assert isinstance(judge, TrainedJudge)
    expected = log_yes(load_judge(tmp_path), encoder, pictures(), PROMPTS)
    np.testing.assert_array_equal(judge.log_yes(pictures(), PROMPTS), expected)

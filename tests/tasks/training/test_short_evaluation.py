"""Scores of a network while it trains change no output and are the same after a resume."""

import os
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from flows.building.stage_graph import upstream_of
from model.autoencoder import build_autoencoder
from model.text_encoder import Reading, build_text_encoder, load_text_encoder, train_tokenizer
from tasks.computing import ranks
from tasks.data.scene_vocabulary import Line
from tasks.evaluation import short_scoring
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.geneval_rules import Verdict
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork, save_judge
from tasks.evaluation.matching.caption_choices import caption_prompts
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt, evaluation_prompts, read_prompts, write_prompts
from tasks.evaluation.short_evaluation import LIMIT, EvaluationCost
from tasks.evaluation.short_scoring import KnownTexts, open_short_scoring, short_choice
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.pretrain import run as run_pretrain
from tasks.runtime.code_digest import stage_files
from tasks.runtime.context import Context
from tasks.stages import edges, stage_of, stages_of
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import write_json
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.training_loop import Trainer
from tests.helpers.drawing_workspace import all_bytes
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES, BrokenOff, spooled, stopping_at
from tests.kernels.processes import run_processes

SHORT = {
    "pretrain.steps": 12,
    "pretrain.preview_every": 0,
    "sampling.steps": 2,
    "sampling.batch_size": 40,
    "shard.image_size": 16,
    "evaluation.scorer": "matching",
    "evaluation.bootstrap_samples": 50,
}
NO_SCORES = {"pretrain.score_every": 0}
SCORES = {"pretrain.score_every": 4}
CAPTIONS = [f"a photo of {number} things" for number in range(1, 61)]
STATE = Path("state")
Scores = dict[int, dict[str, float]]
"""The scores that a training logged, without their seconds, by the number of steps that had been made."""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Encoded samples, and random networks that fit them in place of what the other stages would have trained."""
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)
    torch.manual_seed(0)
    build_autoencoder(3, (12, 12), 1).save(paths.AUTOENCODER)
    reading = Reading(16, "none", "diffusers", "stored")
    build_text_encoder(train_tokenizer(CAPTIONS, 300), 6, 1, 1, reading).save(paths.TEXT_ENCODER)
    paths.SCORER.mkdir()
    write_prompts(paths.SCORER / "prompts.json", caption_prompts(CAPTIONS, CAPTIONS, 2, 0))
    save_judge(JudgeNetwork(JudgeConfig(6)), paths.SCORER)
    write_json(paths.SCORER / "summary.json", {"scorer": "matching"})
    return tmp_path


class PixelScorer:
    """Finds a picture right if the sum of its pixels is even: a score that the least change of a picture can change."""

    name, note = "matching", None

    def score(self, line: Line, pictures: Pictures) -> list[Verdict]:
        return [Verdict(int(picture.sum()) % 2 == 0, "", {}) for picture in pictures]


@pytest.fixture
def scored_by_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks, which find no picture right or the same ones always, would make any two scores equal."""
    monkeypatch.setattr(short_scoring, "open_scorer", lambda *_: PixelScorer())


def train(name: str, resume: bool = False, **changes: object) -> tuple[dict[str, bytes], Scores]:
    """The files that stage `pretrain` writes, and the scores in its spool. To resume it finds the states before."""
    if not resume:
        shutil.rmtree(STATE, ignore_errors=True)
    write_params(Path.cwd(), CHANGES | SHORT | changes)
    params, out, spools = load_params(), Path(name), Path(f"{name}-spool")
    out.mkdir()
    with closing(open_spool(spools, "pretrain", tags={})) as spool:
        run_pretrain(Context("pretrain", params, out, STATE, Tracker(spool), "cpu", 1))
    return all_bytes(out), scores(spools)


def scores(spools: Path) -> Scores:
    found = {}
    for row in spooled(spools):
        values = {key: value for key, value in row.get("values", {}).items() if "_short/" in key}
        if row["kind"] == "metrics" and values:
            assert row["step"] not in found
            found[row["step"]] = values
    return found


@pytest.mark.usefixtures("scored_by_pixels")
def test_training_writes_the_same_bytes_with_and_without_scores() -> None:
    without, none = train("without", **NO_SCORES)
    generator = torch.get_rng_state()
    with_scores, scored = train("with", **SCORES)
    assert none == {} and list(scored) == [4, 8, 12]
    assert with_scores == without
    assert torch.equal(torch.get_rng_state(), generator)  # both trainings left the global generator alike
    names = ("overall", "low", "high", "matching")
    assert all(set(values) == {f"matching_short/{name}" for name in names} for values in scored.values())
    overall = {values["matching_short/overall"] for values in scored.values()}
    assert len(overall) == 3  # the network has changed between them


@pytest.mark.usefixtures("scored_by_pixels")
@pytest.mark.parametrize("step", (4, 7))
def test_a_resumed_training_has_the_scores_of_one_that_never_stopped(step: int) -> None:
    """A state is saved every two steps. The scores of a step are taken after its state is copied."""
    every_two = SCORES | {"pretrain.checkpoint_every": 2}
    files, expected = train("uninterrupted", **every_two)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BrokenOff):
        patch.setattr(Trainer, "update", stopping_at(step))
        train("broken off", **every_two)
    before = scores(Path("broken off-spool"))
    resumed, after = train("resumed", resume=True, **every_two)
    assert resumed == files
    assert before and after and before | after == expected
    assert all(after[step] == before[step] for step in before.keys() & after.keys())


@pytest.mark.usefixtures("scored_by_pixels")
def test_a_stop_between_a_checkpoint_and_its_scores_loses_none() -> None:
    at_four = SCORES | {"pretrain.checkpoint_every": 4}
    _, expected = train("uninterrupted", **at_four)

    def stop(trainer: Trainer) -> bool:
        if trainer.step == 4:
            trainer.states.wait()
            raise BrokenOff
        return False

    with pytest.MonkeyPatch.context() as patch, pytest.raises(BrokenOff):
        patch.setattr(Trainer, "take_scores", stop)
        train("broken off", **at_four)
    assert scores(Path("broken off-spool")) == {}
    assert train("resumed", resume=True, **at_four)[1] == expected


def lines_on_scores(output: str) -> list[str]:
    return [line for line in output.splitlines() if "no scores" in line]


def test_without_a_scorer_one_line_says_what_to_run_and_nothing_is_scored(capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(paths.SCORER)
    without, scored = train("without", **SCORES)
    assert lines_on_scores(capfd.readouterr().out) == [
        "pretrain: no scores while it trains (score_every) as long as outputs/scorer is not there: run scorer"
    ]
    assert scored == {} and without == train("none", **NO_SCORES)[0]


@pytest.mark.usefixtures("scored_by_pixels")
def test_a_scorer_that_comes_while_it_trains_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = train("expected", **SCORES)
    paths.SCORER.rename("scorer that comes")
    update = Trainer.update

    def updating(trainer: Trainer) -> None:
        if trainer.step == 5:
            Path("scorer that comes").rename(paths.SCORER)
        update(trainer)

    monkeypatch.setattr(Trainer, "update", updating)
    assert train("out", **SCORES)[1] == {step: expected[step] for step in (8, 12)}


def test_outputs_that_do_not_fit_are_told_in_one_line_and_training_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    write_json(paths.SCORER / "summary.json", {"scorer": "geneval"})
    files, scored = train("out", **SCORES)
    assert lines_on_scores(capfd.readouterr().out) == [
        "pretrain: no scores while it trains (score_every): outputs/scorer is of geneval, and evaluation.scorer asks "
        "for matching: run scorer"
    ]
    assert scored == {} and files == train("none", **NO_SCORES)[0]


def test_a_gpu_without_memory_for_scores_trains_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    expected, _ = train("expected", **NO_SCORES)
    monkeypatch.setattr(Painter, "_draw_batch", no_memory)
    files, scored = train("out", **SCORES)
    assert files == expected and scored == {}
    assert capfd.readouterr().out.count("the GPU has no memory left for them") == 1


def test_the_scorer_is_ready_to_run_before_the_first_training() -> None:
    """It waits for nothing that `pretrain` does not wait for through `encode`, so a flow starts it first."""
    write_params(Path.cwd(), CHANGES)
    params = load_params()
    assert set(edges(stages_of(params).values())["scorer"]) <= upstream_of(params)["pretrain"] - {"encode"}


@pytest.mark.parametrize("stem", ("pretrain", "train", "scratch", "finetune", "sft"))
def test_no_training_depends_on_the_code_that_scores_it(stem: str) -> None:
    used = {path.as_posix() for path in stage_files(stem)}
    assert "tasks/training/training_loop.py" in used
    assert not any(name.startswith("tasks/evaluation/") for name in used)


def test_prompts_are_evenly_spread_over_tasks() -> None:
    prompts = evaluation_prompts(0, 20)
    assert Counter(prompt.tag for prompt in prompts)["single_object"] == 6
    chosen = short_choice(prompts, 52)
    assert len(chosen) == 52 and all(prompt in prompts for prompt in chosen)
    counts = Counter(prompt.tag for prompt in chosen)
    assert counts.pop("single_object") == 6  # it has no more
    assert set(counts.values()) <= {9, 10} and len(counts) == 5
    seen = Counter(prompt.seen for prompt in chosen if prompt.tag == "colors")
    assert abs(seen[True] - seen[False]) <= 1  # as in the whole list, whose first half states held-out combinations
    assert len({prompt.text for prompt in chosen}) == 52
    assert short_choice(prompts, 1000) == prompts


def test_published_prompts_give_eight_or_nine_of_each_task() -> None:
    sizes = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    prompts = [
        Prompt({"tag": tag, "prompt": f"{tag} {number}"}, None) for tag, size in sizes.items() for number in range(size)
    ]
    counts = Counter(prompt.tag for prompt in short_choice(prompts, 52))
    assert sorted(counts.values()) == [8, 8, 9, 9, 9, 9] and sum(counts.values()) == 52


def test_known_texts_are_what_the_text_encoder_reads() -> None:
    encoder = load_text_encoder(paths.TEXT_ENCODER)
    known = KnownTexts(encoder, [CAPTIONS[:5], CAPTIONS[3:8]])
    assert torch.equal(known.encode_null(), encoder.encode_null())
    for text in (*CAPTIONS[:8], CAPTIONS[0]):
        assert torch.allclose(known.encode([text])[0], encoder.encode([text])[0], atol=1e-6)
    assert known.longest == max(map(len, encoder.encode(CAPTIONS[:8])))


def test_a_score_is_that_of_the_evaluations_own_painter_and_scorer() -> None:
    """Drawn once more by a plain painter with whole batches, the pictures are the same to a level of 8 bits."""
    write_params(Path.cwd(), CHANGES | SHORT | {"compute.dtype": "float32"})
    params, network = load_params(), small_network(2)
    scoring = open_short_scoring(params, 52, "cpu")
    drawn = scoring._painter(network).draw([prompt.text for prompt in scoring.prompts], 1, 7, "test")
    encoder = load_text_encoder(paths.TEXT_ENCODER)
    plain = Painter(network, scoring.decoder, encoder, params, "cpu")
    again = plain.draw([prompt.text for prompt in scoring.prompts], 1, 7, "test")
    assert drawn.shape == again.shape == (52, 1, 16, 16, 3)
    assert abs(drawn.astype(int) - again.astype(int)).max() <= 1
    assert len({picture.tobytes() for picture in drawn}) == 52
    scored = scoring.score(network)
    assert scored is not None and 0 <= scored.overall.low <= scored.overall.value <= scored.overall.high <= 1
    assert list(scoring.prompts) == short_choice(read_prompts(paths.SCORER / "prompts.json"), 52)


def test_the_share_of_time_and_the_advice_follow_from_what_was_measured() -> None:
    cheap = EvaluationCost(steps=1600, step_seconds=0.5, opening_seconds=4.0, evaluation_seconds=3.0)
    assert cheap.share(400) == pytest.approx((4 + 4 * 3) / (4 + 4 * 3 + 800))
    assert cheap.share(400) <= LIMIT < cheap.share(100)
    advised = int(cheap.advice(100).partition("; score_every ")[2].split()[0])
    assert cheap.share(advised) <= LIMIT < cheap.share(advised - 1)
    dear = EvaluationCost(steps=100, step_seconds=0.5, opening_seconds=4.0, evaluation_seconds=3.0)
    assert dear.advice(100).endswith("; a single one is above 3%")


def test_what_an_evaluation_will_take_is_said_once_where_it_is_above_the_limit(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """52 pictures take far longer than four steps of eight samples of this network."""
    train("out", **SCORES)
    lines = [line for line in capfd.readouterr().out.splitlines() if "of its time" in line]
    assert len(lines) == 1 and lines[0].startswith("pretrain: scores while it trains (score_every 4) take ")


def test_a_negative_interval_is_refused() -> None:
    write_params(Path.cwd(), {"pretrain.score_every": -1})
    with pytest.raises(UserError, match="score_every is -1: it must be 0"):
        load_params()


def train_on_ranks(folder: Path) -> None:
    params = load_params(folder / PARAMS_FILE)
    os.chdir(folder)
    number, count = str(ranks.rank()), str(ranks.world_size())
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    for parallelism in ("ddp", "fully_shard"):
        compute = replace(params.compute, parallelism=parallelism, processes_per_node=ranks.world_size())
        for every in (0, params.pretrain.score_every):
            name = f"{parallelism}-{every}"
            changed = replace(params, compute=compute, pretrain=replace(params.pretrain, score_every=every))
            if ranks.rank() == 0:
                Path(f"{name}-out").mkdir()
            with closing(open_spool(Path(f"{name}-spool-{ranks.rank()}"), "pretrain", tags={})) as spool:
                context = Context(
                    "pretrain", changed, Path(f"{name}-out"), Path(f"{name}-state"), Tracker(spool), "cpu", 1
                )
                run_pretrain(context)
            AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("scored_by_pixels")
def test_two_ranks_score_alike_under_ddp_and_say_that_shards_do_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adamw = {"pretrain.optimizer": "adamw", "pretrain.bias_correction": False, "compute.dtype": "float32"}
    write_params(tmp_path, CHANGES | SHORT | SCORES | adamw)
    assert stage_of("pretrain", load_params()).on_ranks
    run_processes(2, tmp_path, train_on_ranks)
    first, second = (scores(tmp_path / f"ddp-4-spool-{rank}") for rank in (0, 1))
    assert list(first) == [4, 8, 12] and first == second
    assert scores(tmp_path / "fully_shard-4-spool-0") == {}
    for parallelism in ("ddp", "fully_shard"):
        assert all_bytes(tmp_path / f"{parallelism}-4-out") == all_bytes(tmp_path / f"{parallelism}-0-out")
    assert "the parameters are sharded, and drawing would need them whole" in capfd.readouterr().out

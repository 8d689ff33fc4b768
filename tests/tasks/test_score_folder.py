"""A folder of any model's pictures is scored, each picture once; what cannot be scored is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from tasks import score_folder as command
from tasks.data.scene_vocabulary import TASKS, lines
from tasks.data.scenes import render, sample_scene
from tasks.evaluation.detectors.mask2former_detector import load_mask2former_detector
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.geneval_atoms import ATOMS, atoms_of
from tasks.evaluation.geneval_folder import read_prompts, read_results, write_prompt
from tasks.evaluation.picture_scoring import score_pictures
from tasks.evaluation.verdict_store import VerdictStore
from tests.helpers.small_detector import write_clip, write_mask2former


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two prompts of each task with three rendered pictures each, some of them of the task and some of another."""
    rng, folder, number = np.random.default_rng(0), tmp_path / "pictures", 0
    for tag in TASKS:
        for _ in range(2):
            scenes = [sample_scene(rng, tag), sample_scene(rng, tag), sample_scene(rng)]
            line = next(line for line in lines(tag) if line["prompt"] == scenes[0].caption)
            write_prompt(folder, number, line, [render(scene) for scene in scenes])
            number += 1
    return folder


def score(pictures: Path, out: Path, *more: str) -> tuple[list[dict], dict]:
    """The lines of results and the summary."""
    settings = ["--detector", "scenes", "--device", "cpu", "--bootstrap-samples", "50", "--batch-size", "4"]
    command.run(["--pictures", str(pictures), "--out", str(out), *settings, *more])
    return read_results(out), json.loads(out.with_suffix(".summary.json").read_text())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        command.run([*arguments])
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the detector is given."""
    counts: list[int] = []
    detect = SceneDetector.detect

    def counted(self: SceneDetector, shown: np.ndarray) -> list:
        counts.append(len(shown))
        return detect(self, shown)

    monkeypatch.setattr(SceneDetector, "detect", counted)
    return counts


def test_every_picture_gets_the_line_of_results_that_its_verdict_says(pictures: Path, tmp_path: Path) -> None:
    rows, summary = score(pictures, tmp_path / "scores" / "results.jsonl")
    expected = []
    for prompt in read_prompts(pictures):
        verdicts = score_pictures(prompt.line, np.stack(prompt.pictures), SceneDetector())
        expected += [
            (name, prompt.line["tag"], prompt.line["prompt"], one.correct, one.reason, prompt.line)
            for name, one in zip(prompt.names, verdicts, strict=True)
        ]
    keys = ("filename", "tag", "prompt", "correct", "reason")
    assert [(*(row[key] for key in keys), json.loads(row["metadata"])) for row in rows] == expected
    assert all(list(row) == [*keys, "metadata", "details"] for row in rows)
    assert (summary["detector"], summary["detector_note"], summary["pictures"]) == ("scenes", None, 36)
    failing = [atoms_of(json.loads(row["metadata"]), row["reason"]) for row in rows]
    for atom in ATOMS:
        looked_at = [atoms[atom] for atoms in failing if atoms.get(atom) is not None]
        part = summary["atoms"][atom]
        assert part["looked_at"] == len(looked_at) and part["value"] == pytest.approx(np.mean(looked_at))
        assert part["low"] <= part["value"] <= part["high"]
        table = pandas.read_csv(tmp_path / "scores" / "results.atoms.csv").query("atom == @atom")
        assert (table["looked_at"].sum(), table["holds"].sum()) == (len(looked_at), sum(looked_at))


def test_geneval_s_own_summary_of_the_lines_says_the_same(pictures: Path, tmp_path: Path) -> None:
    (pictures / "00001" / "samples" / "0001.png").unlink()  # a prompt may have fewer pictures
    _, summary = score(pictures, tmp_path / "results.jsonl")
    table = pandas.read_json(tmp_path / "results.jsonl", orient="records", lines=True)
    by_task = table.groupby("tag", sort=False)["correct"].mean()
    assert 0 < by_task.mean() < 1
    assert summary["geneval"]["overall"] == pytest.approx(by_task.mean())
    assert {task: part["value"] for task, part in summary["geneval"]["tasks"].items()} == pytest.approx(dict(by_task))
    assert summary["correct_pictures"] == pytest.approx(table["correct"].mean())
    assert summary["correct_prompts"] == pytest.approx(table.groupby("metadata")["correct"].any().mean())
    assert summary["geneval"]["low"] <= summary["geneval"]["overall"] <= summary["geneval"]["high"]


def test_only_new_and_changed_pictures_are_scored_again(pictures: Path, tmp_path: Path, searched: list[int]) -> None:
    first = score(pictures, tmp_path / "results.jsonl")
    assert sum(searched) == 36 and max(searched) == 4
    searched.clear()
    assert score(pictures, tmp_path / "results.jsonl") == first and searched == []
    ring = render(sample_scene(np.random.default_rng(9), "single_object"))
    Image.fromarray(ring).save(pictures / "00003" / "samples" / "0000.png")
    Image.fromarray(ring).save(pictures / "00004" / "samples" / "0003.png")
    (pictures / "00000" / "samples" / "0002.png").unlink()
    rows, _ = score(pictures, tmp_path / "results.jsonl")
    assert sum(searched) == 2 and len(rows) == 36
    assert rows == score(pictures, tmp_path / "afresh.jsonl")[0]


def test_a_picture_that_was_renamed_keeps_its_verdict_under_its_new_name(
    pictures: Path, tmp_path: Path, searched: list[int]
) -> None:
    before, _ = score(pictures, tmp_path / "results.jsonl")
    searched.clear()
    samples = pictures / "00000" / "samples"
    (samples / "0002.png").rename(samples / "0007.png")
    after, _ = score(pictures, tmp_path / "results.jsonl")
    assert searched == [] and after[2] == before[2] | {"filename": "00000/samples/0007.png"}


def test_a_changed_prompt_is_scored_again(pictures: Path, tmp_path: Path, searched: list[int]) -> None:
    score(pictures, tmp_path / "results.jsonl")
    searched.clear()
    other = lines("counting")[5]
    (pictures / "00002" / "metadata.jsonl").write_text(json.dumps(other))
    rows, _ = score(pictures, tmp_path / "results.jsonl")
    assert sum(searched) == 3 and rows[6]["prompt"] == other["prompt"]


def test_a_run_that_was_stopped_goes_on_where_it_was(
    pictures: Path, tmp_path: Path, searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = VerdictStore.add

    def stop_after_five(self: VerdictStore, rows: dict) -> None:
        add(self, rows)
        if len(searched) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(VerdictStore, "add", stop_after_five)
        score(pictures, tmp_path / "results.jsonl")
    assert not (tmp_path / "results.jsonl").exists()
    kept = tmp_path / "results.jsonl.verdicts"
    kept.write_bytes(kept.read_bytes()[:-10])  # the last line was being written
    searched.clear()
    resumed = score(pictures, tmp_path / "results.jsonl")
    assert sum(searched) == 36 - 5 * 4 + 1
    searched.clear()
    assert score(pictures, tmp_path / "results.jsonl") == resumed and searched == []
    assert resumed == score(pictures, tmp_path / "afresh.jsonl")


def test_pictures_may_differ_in_size(pictures: Path, tmp_path: Path) -> None:
    small, large = (render(sample_scene(np.random.default_rng(3), "single_object"), size) for size in (32, 64))
    samples = pictures / "00000" / "samples"
    for name, picture in (("0000.png", small), ("0001.png", large), ("0002.png", small)):
        Image.fromarray(picture).save(samples / name)
    rows, _ = score(pictures, tmp_path / "results.jsonl")
    assert len(rows) == 36 and len({row["correct"] for row in rows[:3]}) == 1


def test_pictures_of_any_model_are_scored_with_mask2former(tmp_path: Path) -> None:
    write_mask2former(tmp_path / "mask2former")
    write_clip(tmp_path / "clip")
    line = {"tag": "colors", "include": [{"class": "bicycle", "count": 1, "color": "red"}], "prompt": "a red bicycle"}
    shown = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3)).astype(np.uint8)
    write_prompt(tmp_path / "pictures", 0, line, list(shown))
    models = ["--mask2former", str(tmp_path / "mask2former"), "--clip", str(tmp_path / "clip")]
    rows, summary = score(tmp_path / "pictures", tmp_path / "results.jsonl", "--detector", "mask2former", *models)
    detector = load_mask2former_detector(tmp_path / "mask2former", tmp_path / "clip", "cpu")
    verdicts = score_pictures(line, shown, detector)
    assert [(row["correct"], row["reason"]) for row in rows] == [(one.correct, one.reason) for one in verdicts]
    assert any("found 0 red; and 1" in row["reason"] or row["correct"] for row in rows)  # something was found
    assert "not GenEval's own" in summary["detector_note"]


def test_what_cannot_be_scored_is_refused_in_one_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "results.jsonl"), "--detector"]
    assert refusal(capsys, "--pictures", str(tmp_path / "none"), *out, "scenes") == (
        f"score_folder: {tmp_path / 'none'} is no folder: give one in GenEval's layout\n"
    )
    assert "needs two folders" in refusal(capsys, "--pictures", str(pictures), *out, "mask2former")
    bench = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    (pictures / "00005" / "metadata.jsonl").write_text(json.dumps(bench))
    assert "scenes finds no 'bench'" in refusal(capsys, "--pictures", str(pictures), *out, "scenes")
    assert not (tmp_path / "results.jsonl").exists()

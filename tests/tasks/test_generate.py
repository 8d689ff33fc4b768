"""`generate` writes pictures, the best first, from a seed; damaged, missing and wrong input is one line."""

import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from model.text_encoder import load_text_encoder
from tasks.evaluation.judges.judge_network import load_judge, log_yes
from tasks.generate import SHEET_PIXELS, contact_sheet, main, open_painter, read_prompts
from tasks.params.params_files import PARAMS_FILE, apply_overrides, load_params, read_yaml
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.manifest import write_manifest
from tests.helpers.drawing_workspace import all_bytes, write_workspace

PROMPT = "a photo of a red circle"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A workspace, and a tracker of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_workspace()
    yield


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command says when it exits 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and len(lines) == 1
    return lines[0]


def test_pictures_are_written_with_the_judges_scores_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    main([PROMPT, "--model", "small", "--n", "3", "--seed", "5", "--out", "made"])
    record = json.loads(Path("made/scores.json").read_text())
    (row,) = record["prompts"]
    assert (record["model"], record["seed"], row["prompt"]) == ("small", 5, PROMPT)
    scores = {picture["file"]: picture["log_yes"] for picture in row["pictures"]}
    assert sorted(scores) == [f"00000/000{i}.png" for i in range(3)]
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    pictures = np.stack([np.asarray(Image.open(Path("made") / name)) for name in sorted(scores)])
    again = log_yes(load_judge(paths.JUDGE), load_text_encoder(paths.TEXT_ENCODER), pictures[None], [PROMPT])[0]
    np.testing.assert_allclose([scores[name] for name in sorted(scores)], again, atol=1e-6)
    assert f"best is made/{row['pictures'][0]['file']}" in capsys.readouterr().out


def test_a_model_of_a_copy_draws_with_the_params_of_its_copy() -> None:
    copy = Path("runs/other")
    shutil.copytree(paths.OUTPUTS, copy / paths.OUTPUTS)
    values = apply_overrides(read_yaml(PARAMS_FILE), {"shard.image_size": 24}, "test")
    (copy / PARAMS_FILE).write_text(yaml.safe_dump(values), encoding="utf-8")
    main([PROMPT, "--model", "runs/other/outputs/small", "--n", "1", "--out", "made"])
    assert Image.open("made/00000/0000.png").size == (24, 24)


@pytest.mark.parametrize("name", ["small", "autoencoder", "text_encoder", "judge"])
def test_a_flipped_bit_in_what_a_stage_wrote_is_found_before_anything_is_drawn(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = paths.OUTPUTS / name
    write_manifest(folder)
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    message = refusal([PROMPT, "--model", "small"], capsys)
    assert f"{weights} does not match {folder / 'manifest.json'}" in message
    assert not Path("generated").exists()


def test_contact_sheet_has_a_row_for_each_prompt_and_its_best_picture_first() -> None:
    Path("prompts.txt").write_text(f"{PROMPT}\n\n  a photo of two rings \n", encoding="utf-8")
    main(["--prompts", "prompts.txt", "--model", "outputs/grown", "--n", "2", "--out", "made"])
    rows = json.loads(Path("made/scores.json").read_text())["prompts"]
    assert [row["prompt"] for row in rows] == [PROMPT, "a photo of two rings"]
    sheet = np.asarray(Image.open("made/sheet.png"))
    assert sheet.shape == (2 * 20 * 4, 2 * 20 * 4, 3)  # pictures of 16, framed by 2, enlarged by 4
    for number, row in enumerate(rows):
        for place, picture in enumerate(row["pictures"]):
            cell = sheet[number * 80 : number * 80 + 80, place * 80 : place * 80 + 80][8:72:4, 8:72:4]
            np.testing.assert_array_equal(cell, np.asarray(Image.open(Path("made") / picture["file"])))


def test_same_seed_gives_the_same_files_and_another_seed_others() -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        main([PROMPT, "--model", "small", "--n", "2", "--seed", seed, "--out", out])
    assert all_bytes(Path("a")) == all_bytes(Path("b"))
    assert all_bytes(Path("a"))["00000/0000.png"] != all_bytes(Path("c"))["00000/0000.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a prompt or --prompts FILE"),
        ([PROMPT, "--prompts", "prompts.txt"], "give either a prompt or --prompts FILE"),
        (["  "], "is empty"),
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        ([PROMPT, "--n", "0"], "--n 0: draw at least 1 picture"),
        ([PROMPT, "--model", "pruned-99"], "pruned-99"),
        ([PROMPT, "--out", "outputs"], "outputs exists"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(arguments, capsys)


@pytest.mark.parametrize("stage", ["autoencoder", "text_encoder", "judge"])
def test_missing_stage_is_named_with_the_command_that_makes_it(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (paths.OUTPUTS / stage).rename("elsewhere")
    assert f"python -m tasks.{stage}" in refusal([PROMPT, "--model", "small"], capsys)
    assert not Path("generated").exists()


def test_one_picture_needs_no_judge_and_several_do_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    main([PROMPT, "--model", "small", "--n", "2", "--out", "judged"])
    main([PROMPT, "--model", "small", "--n", "1", "--judge", "--out", "one judged"])
    shutil.rmtree(paths.JUDGE)
    capsys.readouterr()
    main([PROMPT, "--model", "small", "--n", "1", "--out", "one"])
    main([PROMPT, "--model", "small", "--n", "2", "--no-judge", "--out", "two"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(PROMPT)]
    assert printed == [f"{PROMPT}: one/00000/0000.png", f"{PROMPT}: two/00000/0000.png and 1 more"]
    picture = "00000/0000.png"
    assert all_bytes(Path("one"))[picture] == all_bytes(Path("two"))[picture] == all_bytes(Path("judged"))[picture]
    assert json.loads(Path("one/scores.json").read_text())["prompts"][0]["pictures"] == [{"file": picture}]
    (judged,) = json.loads(Path("one judged/scores.json").read_text())["prompts"][0]["pictures"]
    assert judged["log_yes"] < 0
    for arguments in (["--n", "2"], ["--n", "1", "--judge"]):
        message = refusal([PROMPT, "--model", "small", *arguments, "--out", "more"], capsys)
        assert "has no judge beside it: run python -m tasks.judge there, or draw with --no-judge" in message


def test_a_model_of_another_workspace_is_drawn_with_what_lies_beside_it(tmp_path: Path) -> None:
    main([PROMPT, "--model", "small", "--n", "2", "--out", "here"])
    paths.OUTPUTS.rename("elsewhere")
    main([PROMPT, "--model", "elsewhere/small", "--n", "2", "--out", "there"])
    here, there = all_bytes(Path("here")), all_bytes(Path("there"))
    assert {name: there[name] for name in there if name.endswith(".png")} == {
        name: here[name] for name in here if name.endswith(".png")
    }
    shutil.copytree("elsewhere/small", "alone/small")
    with pytest.raises(UserError, match="alone/small has no autoencoder beside it"):
        open_painter(Path("alone/small"), load_params())


def test_a_folder_that_cannot_be_made_is_refused_before_drawing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.generate.open_painter", None)
    Path("README.md").write_text("x")
    assert "README.md is no folder" in refusal([PROMPT, "--model", "small", "--out", "README.md/x"], capsys)


def test_a_byte_order_mark_is_no_part_of_the_first_prompt() -> None:
    Path("prompts.txt").write_bytes(b"\xef\xbb\xbfa cat\n")
    assert read_prompts(Namespace(prompt=None, prompts=Path("prompts.txt"))) == ["a cat"]


def test_contact_sheet_of_large_pictures_is_bounded() -> None:
    sheet = contact_sheet(np.zeros((2, 3, 2048, 2048, 3), np.uint8))
    assert sheet.width * sheet.height <= SHEET_PIXELS

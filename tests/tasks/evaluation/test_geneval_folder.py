"""GenEval's folder of pictures and file of results are read and written as GenEval does; each fault is named."""

import json

import numpy as np
import pytest
from PIL import Image

from tasks.data.scene_vocabulary import lines
from tasks.data.scenes import render, sample_scene
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.geneval_folder import read_prompts, read_results, result, write_prompt, write_results
from tasks.evaluation.picture_scoring import score_pictures
from tasks.system.errors import UserError
from tasks.system.manifest import write_manifest


def write_some(folder) -> list:
    rng = np.random.default_rng(0)
    written = []
    for number, line in enumerate(lines("single_object")[:2]):
        pictures = [render(sample_scene(rng)) for _ in range(3)]
        write_prompt(folder, number, line, pictures)
        written.append((line, pictures))
    return written


def test_pictures_and_lines_come_back_as_written(tmp_path):
    written = write_some(tmp_path)
    assert (tmp_path / "00001" / "samples" / "0002.png").is_file()
    read = list(read_prompts(tmp_path))
    assert [prompt.line for prompt in read] == [line for line, _ in written]
    assert read[1].names[2] == "00001/samples/0002.png"
    assert all(np.array_equal(p.pictures, pictures) for p, (_, pictures) in zip(read, written, strict=True))


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_some(tmp_path / name)
    assert write_manifest(tmp_path / "first") == write_manifest(tmp_path / "second")


def test_pictures_come_in_the_order_of_their_numbers_and_other_files_are_left_out(tmp_path):
    write_some(tmp_path)
    samples = tmp_path / "00000" / "samples"
    (samples / "0000.png").rename(samples / "10.png")
    (samples / "grid.png").write_bytes(b"")
    (tmp_path / "results.jsonl").write_text("")
    names = next(read_prompts(tmp_path)).names
    assert [name.rpartition("/")[2] for name in names] == ["0001.png", "0002.png", "10.png"]


def test_results_have_geneval_s_fields(tmp_path):
    write_some(tmp_path)
    prompt = next(read_prompts(tmp_path))
    (verdict,) = score_pictures(prompt.line, np.stack(prompt.pictures[:1]), SceneDetector())
    write_results(tmp_path / "results.jsonl", [result(prompt.names[0], prompt.line, verdict)])
    (row,) = read_results(tmp_path / "results.jsonl")
    assert list(row) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert json.loads(row["metadata"]) == prompt.line
    boxes = json.loads(row["details"])
    assert boxes and all(len(box) == 5 and 0 < box[4] <= 1 for found in boxes.values() for box in found)


def test_a_broken_picture_or_line_is_named(tmp_path):
    write_some(tmp_path)
    picture = tmp_path / "00000" / "samples" / "0001.png"
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(UserError, match=r"0001\.png cannot be read as a PNG"):
        next(read_prompts(tmp_path))
    (tmp_path / "00000" / "metadata.jsonl").write_text('{"tag": "colors"}')
    with pytest.raises(UserError, match=r"metadata.jsonl is no GenEval prompt line: it must have the keys tag"):
        next(read_prompts(tmp_path))
    (tmp_path / "results.jsonl").write_text("{}\n{")
    with pytest.raises(UserError, match=r"results.jsonl line 2 is not valid JSON"):
        read_results(tmp_path / "results.jsonl")


def test_a_folder_as_geneval_writes_it_is_read(tmp_path):
    line = {
        "tag": "colors",
        "include": [{"class": "bus", "count": 1, "color": "red"}],
        "prompt": "a photo of a red bus",
    }
    samples = tmp_path / "00007" / "samples"  # five digits, no new line, a grid and GenEval's results beside them
    samples.mkdir(parents=True)
    (tmp_path / "00007" / "metadata.jsonl").write_text(json.dumps(line))
    shown = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3)).astype(np.uint8)
    for number, picture in enumerate(shown):
        Image.fromarray(picture).save(samples / f"{number:05}.png")
    Image.fromarray(shown[0]).save(tmp_path / "00007" / "grid.png")
    (tmp_path / "results").mkdir()
    (prompt,) = read_prompts(tmp_path)
    assert prompt.line == line and np.array_equal(np.stack(prompt.pictures), shown)
    assert prompt.names == tuple(f"00007/samples/{number:05}.png" for number in range(4))


def test_pictures_of_other_modes_are_read_as_rgb(tmp_path):
    write_some(tmp_path)
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    samples = tmp_path / "00000" / "samples"
    shown.convert("RGBA").save(samples / "0000.png")
    shown.convert("L").save(samples / "0001.png")
    first, second, _ = next(read_prompts(tmp_path)).pictures
    assert np.array_equal(first, np.asarray(shown))
    assert np.array_equal(second, np.repeat(np.asarray(shown.convert("L"))[..., None], 3, axis=2))


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    write_some(tmp_path)
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    shown.save(tmp_path / "00000" / "samples" / "0000.png", exif=exif)
    first = next(read_prompts(tmp_path)).pictures[0]
    assert np.array_equal(first, np.rot90(np.asarray(shown), k=-1))


def test_a_folder_without_prompts_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no numbered prompt folders"):
        next(read_prompts(tmp_path))

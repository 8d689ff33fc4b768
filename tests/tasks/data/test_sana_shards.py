"""Claims about SANA's own shards: what is read of them, which caption is taken, and that every fault is named."""

import io
import json
import math
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.data.heldout_split import usable
from tasks.data.picture_dataset import PictureDataset
from tasks.data.rejected_pictures import Rejects
from tasks.data.sources.picture_candidate import Reject
from tasks.data.sources.sana_shards import CaptionChoice, caption_weights, choose_caption, sana_candidates
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.shard import own_candidates, write_own_pictures
from tasks.system.errors import UserError
from tests.helpers.small_workspace import PUBLISHED_DETECTOR

SUFFIXES = ("", "_InternVL2-26B", "_VILA1-5-13B", "_prompt")
CHOICE = CaptionChoice(SUFFIXES, threshold=25.0, temperature=0.1, seed=0)
NO_SIDE_FILES = replace(CHOICE, suffixes=())


def picture(shade: int = 0, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, format=kind)
    return buffer.getvalue()


def record(prompt: str = "a cat", **changes: Any) -> bytes:
    """A sample's json; a change to None takes the field out."""
    values = {"height": 16, "width": 16, "prompt": prompt, **changes}
    return json.dumps({name: value for name, value in values.items() if value is not None}).encode()


def write_shard(path: Path, members: dict[str, bytes]) -> dict[str, Any]:
    """Write a tar; returns its entry of the metadata."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    keys = {name.partition(".")[0] for name in members}
    return {"url": path.name, "nsamples": len(keys), "filesize": path.stat().st_size}


def write_meta(folder: Path, shards: list[Any], **changes: Any) -> None:
    meta = {"name": "sana-dev", "__kind__": "SANA-WebDataset", "wids_version": 1, "shardlist": shards}
    (folder / "wids-meta.json").write_text(json.dumps(meta | changes))


def write_side(folder: Path, name: str, values: dict[str, dict[str, Any]]) -> None:
    (folder / name).write_text(json.dumps(values))


def one_shard(folder: Path, members: dict[str, bytes] | None = None, **changes: Any) -> None:
    """A folder of one shard with its metadata, whose entry is changed."""
    members = members or {"a.json": record(), "a.png": picture()}
    write_meta(folder, [write_shard(folder / "00000.tar", members) | changes])


def outcome(folder: Path, choice: CaptionChoice) -> tuple[dict[str, str], dict[str, str]]:
    """Captions of the usable pictures, and reasons of the rejects, by where they are."""
    candidates = sana_candidates(folder, choice)
    rejects = Rejects(len(candidates))
    taken = {candidate.where: caption for candidate, _, caption in usable(candidates, 8, 10_000, rejects)}
    return taken, dict(rejects.found)


def test_captions_are_drawn_as_often_as_the_formula_says(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(np.random.SeedSequence().entropy % 2**32)
    with capsys.disabled():
        print(f" [seed {seed}]", end="")
    scores = {"prompt": 25.0, "vila": 27.1, "intern": 30.5, "short": 24.99, "unknown": 40.0}
    captions = {name: name for name in ("prompt", "vila", "intern", "short")}
    draws = 20_000
    for temperature in (0.1, 1.0):
        choice = replace(CHOICE, temperature=temperature, seed=seed)
        counts = Counter(choose_caption(captions, scores, f"key {i}", choice) for i in range(draws))
        good = {name: scores[name] for name in ("prompt", "vila", "intern")}
        total = sum(score ** (1 / temperature) for score in good.values())
        assert counts.keys() <= good.keys()
        for name, score in good.items():
            p = score ** (1 / temperature) / total
            bound = 6 * math.sqrt(draws * p * (1 - p))  # of a binomial count: passed once in 10^9
            assert abs(counts[name] - draws * p) < bound, (name, counts, temperature, seed)


def test_fixed_proportions_are_kept_among_the_types_that_a_sample_has() -> None:
    choice = replace(CHOICE, proportions={"prompt": 1.0, "vila": 3.0, "intern": 0.0})
    captions = {name: name for name in ("prompt", "vila", "intern")}
    assert caption_weights(captions, {"intern": 40.0}, choice) == {"prompt": 0.25, "vila": 0.75}
    assert caption_weights({"prompt": "p", "intern": "i"}, {}, choice) == {"prompt": 1.0}
    assert caption_weights({"intern": "i"}, {"intern": 40.0}, choice) == {"prompt": 1.0}
    draws = 2_000
    vila = Counter(choose_caption(captions, {}, f"key {i}", choice) for i in range(draws))["vila"]
    assert abs(vila - 0.75 * draws) < 6 * math.sqrt(draws * 0.75 * 0.25)


SCORED = {
    "high": ({"vila": "27.0"}, {"prompt": "30.0", "vila": "26"}),
    "low": ({"vila": "27.0"}, {"prompt": "24.0", "vila": "24.9"}),
    "of-another": ({}, {"prompt": "20", "vila": "60"}),
    "unknown": ({}, {}),
    "bad-prompt": ({"vila": "text"}, {"prompt": "21.9", "vila": "25"}),
}
"""Captions and scores by key. The score of a caption that a sample has not does not count."""


def scored_shard(folder: Path) -> None:
    members = {}
    for key in SCORED:
        members |= {f"{key}.json": record(f"prompt of {key}"), f"{key}.png": picture()}
    one_shard(folder, members)
    write_side(folder, "00000_x.json", {key: captions for key, (captions, _) in SCORED.items()})
    write_side(folder, "00000_x_clip_score.json", {key: scores for key, (_, scores) in SCORED.items()})


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, set(SCORED)),
        ({"least_score": 25.0}, {"high", "bad-prompt"}),
        ({"least_prompt_score": 22.0}, {"high", "low", "unknown"}),
        ({"least_score": 25.0, "least_prompt_score": 22.0}, {"high"}),
    ],
)
def test_pictures_whose_captions_score_too_low_are_left_out_and_are_no_rejects(
    tmp_path: Path, limits: dict[str, float], kept: set[str]
) -> None:
    scored_shard(tmp_path)
    candidates = sana_candidates(tmp_path, replace(CHOICE, suffixes=("_x",), **limits))
    rejects = Rejects(len(candidates))
    taken = {candidate.key for candidate, _, _ in usable(candidates, 8, 10_000, rejects)}
    assert (taken, rejects.found, rejects.left_out) == (kept, [], len(SCORED) - len(kept))


def test_the_caption_that_is_drawn_is_kept_first_and_the_heaviest_others_behind_it(tmp_path: Path) -> None:
    captions = {"a": "a text", "b": "b text", "c": "c text", "d": "b text"}
    scores = {"a": 26.0, "b": 27.0, "c": 28.0, "d": 29.0}
    one_shard(tmp_path, {"k.json": record(), "k.png": picture()})
    write_side(tmp_path, "00000_x.json", {"k": captions})
    write_side(tmp_path, "00000_x_clip_score.json", {"k": scores})
    weights = caption_weights({**captions, "prompt": "a cat"}, scores, CHOICE)
    for seed in range(8):
        choice = replace(CHOICE, suffixes=("_x",), seed=seed)
        (one,) = sana_candidates(tmp_path, choice)
        assert one.captions is None
        drawn = one.read()[1]
        for kept in (2, 3, 9):
            (several,) = sana_candidates(tmp_path, replace(choice, kept=kept))
            found = several.captions()
            assert several.read()[1] == drawn == next(iter(found))
            by_text = {"a text": weights["a"], "c text": weights["c"], "b text": weights["b"] + weights["d"]}
            assert len(found) == min(kept, 3)
            assert all(found[text] == pytest.approx(by_text[text]) for text in found)
            if kept == 2 and drawn != "b text":
                assert set(found) == {drawn, "b text"}


def test_a_further_caption_that_cannot_be_used_is_passed_over(tmp_path: Path) -> None:
    one_shard(tmp_path, {"k.json": record(), "k.png": picture()})
    write_side(tmp_path, "00000_x.json", {"k": {"a": "a text", "b": "bad \ud800 text", "c": "  "}})
    write_side(tmp_path, "00000_x_clip_score.json", {"k": {"a": 29.0, "b": 28.0, "c": 28.0}})
    read = 0
    for seed in range(12):
        choice = replace(CHOICE, suffixes=("_x",), seed=seed, kept=3)
        (candidate,) = sana_candidates(tmp_path, choice)
        try:
            caption = candidate.read()[1]
        except Reject:
            continue  # it is the one that was drawn
        read += 1
        assert (caption, list(candidate.captions())) == ("a text", ["a text"])
    assert read


def test_temperature_of_almost_nothing_takes_the_best_and_overflows_nowhere() -> None:
    scores = {"a": 9900.0, "b": 4000.0}
    for temperature in (1e-300, 0.01):
        choice = replace(CHOICE, temperature=temperature)
        assert {choose_caption(scores | {}, scores, f"{i}", choice) for i in range(50)} == {"a"}


def test_choice_depends_on_seed_and_key_and_not_on_the_order_of_captions() -> None:
    scores = {"prompt": 26.0, "vila": 27.0, "intern": 28.0}
    captions = dict.fromkeys(scores, "text")
    first = [choose_caption(captions, scores, f"{i}", CHOICE) for i in range(60)]
    backwards = dict(reversed(scores.items()))
    assert [choose_caption(captions, backwards, f"{i}", CHOICE) for i in reversed(range(60))] == first[::-1]
    assert [choose_caption(captions, scores, f"{i}", replace(CHOICE, seed=1)) for i in range(60)] != first
    assert len(set(first)) == 3


def test_below_the_threshold_the_best_is_taken_and_without_scores_the_prompt() -> None:
    captions = {"prompt": "p", "vila": "v", "intern": "i"}
    for i in range(20):
        assert choose_caption(captions, {"vila": 20.0, "intern": 24.9, "gone": 60.0}, f"{i}", CHOICE) == "intern"
        assert choose_caption(captions, {"vila": -3.0}, f"{i}", CHOICE) == "vila"
        assert choose_caption(captions, {"gone": 60.0}, f"{i}", CHOICE) == "prompt"
        assert choose_caption(captions, {}, f"{i}", CHOICE) == "prompt"
    assert choose_caption(captions, {"vila": 25.0, "intern": 24.99}, "at the threshold", CHOICE) == "vila"


def test_captions_and_scores_are_read_from_the_files_beside_each_shard(tmp_path: Path) -> None:
    members = {}
    for key in ("both", "low", "unscored", "scored prompt", "blank"):
        members |= {f"{key}.json": record(f"prompt of {key}"), f"{key}.jpg": picture(kind="JPEG")}
    one_shard(tmp_path, members)
    captions = {"both": {"vila": "vila's"}, "low": {"vila": "low vila's"}, "blank": {"vila": " "}}
    write_side(tmp_path, "00000.json", {"unscored": {"other": "never"}})
    write_side(tmp_path, "00000_VILA1-5-13B.json", captions)
    write_side(
        tmp_path,
        "00000_VILA1-5-13B_clip_score.json",
        {"both": {"vila": "27.10"}, "low": {"vila": "14.00"}, "blank": {"vila": "30.00"}},
    )
    write_side(tmp_path, "00000_InternVL2-26B.json", {"low": {"intern": "low intern's"}})
    write_side(tmp_path, "00000_InternVL2-26B_clip_score.json", {"low": {"intern": "15.50"}})
    write_side(
        tmp_path, "00000_prompt_clip_score.json", {"scored prompt": {"prompt": "26.00"}, "both": {"prompt": "9.0"}}
    )
    taken, rejected = outcome(tmp_path, CHOICE)
    assert rejected == {}
    assert taken == {
        "00000.tar:both": "vila's",
        "00000.tar:low": "low intern's",
        "00000.tar:unscored": "prompt of unscored",
        "00000.tar:scored prompt": "prompt of scored prompt",
        "00000.tar:blank": "prompt of blank",
    }
    assert outcome(tmp_path, NO_SIDE_FILES)[0] == {
        f"00000.tar:{key}": f"prompt of {key}" for key in ("both", "low", "unscored", "scored prompt", "blank")
    }


def test_a_caption_file_of_type_prompt_does_not_replace_the_samples_own_prompt(tmp_path: Path) -> None:
    members = {}
    for key in ("own", "recaptioned"):
        members |= {f"{key}.json": record(f"prompt of {key}"), f"{key}.png": picture()}
    one_shard(tmp_path, members)
    others = {key: {"prompt": f"{key} by v1.5", "short": "left out"} for key in ("own", "recaptioned")}
    write_side(tmp_path, "00000_v1.5.json", others)
    scores = {"own": {"prompt": "30.0", "short": "40.0"}, "recaptioned": {"_v1_5": "30.0", "prompt": "9.0"}}
    write_side(tmp_path, "00000_v1.5_clip_score.json", scores)
    taken, rejected = outcome(tmp_path, replace(CHOICE, suffixes=("_v1.5",)))
    assert rejected == {}
    assert taken == {"00000.tar:own": "prompt of own", "00000.tar:recaptioned": "recaptioned by v1.5"}


def test_every_fault_of_a_sample_is_named_with_its_reason(tmp_path: Path) -> None:
    npy = io.BytesIO()
    np.save(npy, np.zeros((32, 2, 2), np.float16))
    png = picture()
    members = {
        "good.json": record(),
        "good.png": png,
        "flat.json": record(height=None),
        "flat.png": png,
        "thin.json": record(width=0),
        "thin.png": png,
        "words.json": record(width="16"),
        "words.png": png,
        "mute.json": record(prompt=None),
        "mute.png": png,
        "broken.json": b"{",
        "broken.png": png,
        "list.json": b"[1]",
        "list.png": png,
        "bare.png": png,
        "blind.json": record(),
        "latents.json": record(),
        "latents.npy": npy.getvalue(),
        "cut.json": record(),
        "cut.png": png[:-30],
        "empty.json": record("  "),
        "empty.png": png,
        "scores.json": record(),
        "scores.png": png,
        "nan.json": record(),
        "nan.png": png,
    }
    entries = [write_shard(tmp_path / "0.tar", members)]
    entries.append(write_shard(tmp_path / "1.tar", {"good.json": record("again"), "good.png": png}))
    write_meta(tmp_path, entries)
    write_side(tmp_path, "0_prompt_clip_score.json", {"scores": {"prompt": "high"}, "nan": {"prompt": "nan"}})
    write_side(tmp_path, "1_prompt_clip_score.json", {})
    taken, rejected = outcome(tmp_path, replace(CHOICE, suffixes=("_prompt",)))
    assert taken == {"0.tar:good": "a cat"}
    reasons = {
        "0.tar:flat": "its json has no height",
        "0.tar:thin": "its json has no width",
        "0.tar:words": "its json has no width",
        "0.tar:mute": "its json has no prompt",
        "0.tar:broken": "its json is not JSON",
        "0.tar:list": "its json has no prompt",
        "0.tar:bare": "it has no json",
        "0.tar:blind": "no picture among its members",
        "0.tar:latents": "latents (.npy) and no picture",
        "0.tar:cut": "cannot be decoded",
        "0.tar:empty": "empty caption",
        "0.tar:scores": "CLIP scores {'prompt': 'high'} are not all numbers",
        "0.tar:nan": "are not all numbers",
        "1.tar:good": "duplicate key: 0.tar:good",
    }
    assert rejected.keys() == reasons.keys()
    assert all(reason in rejected[where] for where, reason in reasons.items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nsamples": 2}, r"00000\.tar has 1 samples, wids-meta\.json says 2"),
        ({"filesize": 7}, r"00000\.tar has \d+ bytes, wids-meta\.json says 7"),
        ({"url": "gone.tar"}, r"gone\.tar is missing: wids-meta\.json lists it"),
        ({"url": "https://example.org/00000.tar"}, r"shardlist\[0\] has the url 'https.*fetch it first"),
        ({"url": "00000.zip"}, r"shardlist\[0\] has the url '00000\.zip'"),
        ({"url": None}, r"shardlist\[0\] is .* needs a url, nsamples and filesize"),
        ({"nsamples": "1"}, r"shardlist\[0\] is .* needs a url, nsamples and filesize"),
    ],
)
def test_wrong_entry_of_a_shard_stops_with_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    one_shard(tmp_path, **changes)
    with pytest.raises(UserError, match=reason) as caught:
        sana_candidates(tmp_path, NO_SIDE_FILES)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"__kind__": "wids-shard-index-v1"},
            "is of kind 'wids-shard-index-v1', version 1: it must be 'SANA-WebDataset'",
        ),
        ({"wids_version": 2}, "version 2: it must be"),
        ({"shardlist": []}, "lists no shards"),
        ({"shardlist": ["00000.tar"]}, r"shardlist\[0\] is '00000\.tar'"),
    ],
)
def test_metadata_of_another_kind_stops_with_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    one_shard(tmp_path)
    write_meta(tmp_path, json.loads((tmp_path / "wids-meta.json").read_text())["shardlist"], **changes)
    with pytest.raises(UserError, match=reason) as caught:
        sana_candidates(tmp_path, NO_SIDE_FILES)
    assert "\n" not in str(caught.value) and "wids-meta.json" in str(caught.value)


def test_metadata_that_is_missing_or_no_json_or_lists_a_shard_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wids-meta\.json is missing: .* take webdataset"):
        sana_candidates(tmp_path, NO_SIDE_FILES)
    for text, reason in (("{", "is not valid JSON"), ("[]", "holds no mapping")):
        (tmp_path / "wids-meta.json").write_text(text)
        with pytest.raises(UserError, match=rf"wids-meta\.json {reason}"):
            sana_candidates(tmp_path, NO_SIDE_FILES)
    entry = write_shard(tmp_path / "0.tar", {"a.json": record(), "a.png": picture()})
    write_meta(tmp_path, [entry, entry])
    with pytest.raises(UserError, match="lists a shard twice"):
        sana_candidates(tmp_path, NO_SIDE_FILES)


def test_shards_that_the_metadata_does_not_list_are_left_out(tmp_path: Path) -> None:
    write_shard(tmp_path / "other.tar", {"b.json": record(), "b.png": picture()})
    one_shard(tmp_path)
    assert outcome(tmp_path, NO_SIDE_FILES) == ({"00000.tar:a": "a cat"}, {})


def test_missing_or_broken_side_files_are_named(tmp_path: Path) -> None:
    one_shard(tmp_path)
    choice = replace(CHOICE, suffixes=("_VILA",))
    missing = r"00000\.tar has neither 00000_VILA\.json nor 00000_VILA_clip_score\.json .* '_VILA' out of"
    with pytest.raises(UserError, match=missing):
        sana_candidates(tmp_path, choice)
    for text, reason in (("{", "is not valid JSON"), ("[]", "holds no mapping"), ('{"a": "x"}', "'a' is 'x'")):
        (tmp_path / "00000_VILA.json").write_text(text)
        with pytest.raises(UserError, match=rf"00000_VILA\.json:? {reason}"):
            outcome(tmp_path, choice)


def test_stage_shard_writes_sanas_shards_in_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sana").mkdir()
    sizes = [(16, 16), (32, 16), (16, 32)]
    entries = []
    for number in range(2):
        members = {}
        for i in range(9 * number, 9 * number + 9):
            height, width = sizes[i % 3]
            members[f"{i:04d}.json"] = record(f"shade {i}", height=height * 10, width=width * 10)
            members[f"{i:04d}.png"] = picture(i, (width, height))
        entries.append(write_shard(Path("sana") / f"{number}.tar", members))
    write_meta(Path("sana"), entries)
    changes = {"source": "sana", "path": "sana", "image_size": 16, "aspect_buckets": True, "heldout_samples": 4}
    values = PUBLISHED_DETECTOR | {f"shard.{name}": value for name, value in changes.items()}
    defaults = read_yaml(Path(__file__).parents[3] / PARAMS_FILE)
    params = build_params(apply_overrides(defaults, values, "test"), "test").shard
    Path("out").mkdir()
    metrics = write_own_pictures(Path("out"), params, own_candidates(params, Path("sana"), seed=0))
    assert metrics == {"train_samples": 14, "heldout_samples": 4, "rejected": 0}
    seen = {}
    for split in ("train", "heldout"):
        dataset = PictureDataset(Path("out"), split)
        for index, caption in enumerate(dataset.captions):
            seen[caption] = dataset.pictures([index])[0]
    assert seen.keys() == {f"shade {i}" for i in range(18)}
    buckets = {(16, 16): (16, 16), (32, 16): (22, 11), (16, 32): (11, 22)}
    for i in range(18):
        assert seen[f"shade {i}"].shape == (*buckets[sizes[i % 3]], 3) and (seen[f"shade {i}"] == i).all()

"""Claims about where pictures come from: every ordinary kind is read right, every fault is named and counted."""

import hashlib
import io
import json
import os
import random
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.data.heldout_split import heldout_count, usable
from tasks.data.picture_dataset import PictureDataset
from tasks.data.picture_files import load_picture
from tasks.data.rejected_pictures import Rejects
from tasks.data.sources.picture_candidate import Candidate, Reject, clean_caption
from tasks.data.sources.picture_folder import folder_candidates
from tasks.data.sources.webdataset_shards import webdataset_candidates
from tasks.params.picture_params import Shard
from tasks.shard import write_own_pictures, write_scenes
from tasks.system.errors import UserError

SIZE = 8
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def shard_params(**changes: object) -> Shard:
    """Small params of a folder source."""
    values = {
        "source": "folder",
        "path": "pictures",
        "image_size": SIZE,
        "aspect_buckets": False,
        "train_samples": 1,
        "heldout_samples": 3,
        "samples_per_shard": 5,
        "max_pixels": 10_000,
        "max_reject_share": 0.0,
        "caption_suffixes": (),
        "caption_score_threshold": 25.0,
        "caption_temperature": 0.1,
        "caption_proportions": {},
        "captions_per_sample": 1,
        "min_caption_score": None,
        "min_prompt_score": None,
        "scene_tasks": (),
    }
    return Shard(**{**values, **changes})


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def plain(colour: object = RED, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of one colour."""
    return Image.new(mode, size, colour)


def noise(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture that compresses badly."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels and that holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def turned() -> bytes:
    """A JPEG whose EXIF says that it lies on its side: upright, its upper half is red and its lower half blue."""
    upright = Image.new("RGB", (16, 16), RED)
    upright.paste(BLUE, (0, 8, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(upright.rotate(90), "JPEG", exif=exif, quality=95)


def cut_out(mode: str) -> Image.Image:
    """Red on the left half and transparent on the right, in a mode with alpha."""
    image = Image.new("RGBA", (16, 16), (*RED, 255))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    return image.convert(mode)


def mean_colour(picture: np.ndarray) -> list[int]:
    """The mean colour of a part of a picture, rounded."""
    return picture.reshape(-1, 3).mean(0).round().astype(int).tolist()


def folder_of(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Write files of a folder source."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def outcome(candidates: list[Candidate], max_pixels: int = 10_000) -> tuple[dict[str, str], dict[str, str]]:
    """Captions of the usable pictures, and reasons of the rejects, by where they are."""
    rejects = Rejects(len(candidates))
    taken = {candidate.where: caption for candidate, _, caption in usable(candidates, SIZE, max_pixels, rejects)}
    return taken, dict(rejects.found)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(plain(), "PNG"), RED),
        (encoded(plain(), "BMP"), RED),
        (encoded(plain(), "TIFF"), RED),
        (encoded(plain(), "WEBP", lossless=True), RED),
        (encoded(plain().convert("P"), "PNG"), RED),
        (encoded(plain().convert("P"), "GIF"), RED),
        (encoded(plain(128, "L"), "PNG"), (128, 128, 128)),
        (encoded(plain(1, "1"), "PNG"), WHITE),
        (encoded(Image.fromarray(np.full((16, 16), 65535, np.uint16)), "PNG"), WHITE),
        (encoded(Image.fromarray(np.full((16, 16), 25700, np.uint16)), "PNG"), (100, 100, 100)),
        (encoded(Image.fromarray(np.full((16, 16), 25700, np.uint16)), "TIFF"), (100, 100, 100)),
        (encoded(plain((0, 0, 0, 0), "CMYK"), "JPEG", quality=95), WHITE),
        (encoded(plain((0, 255, 255, 0), "CMYK"), "TIFF"), RED),
        (encoded(plain((*BLUE, 0), "RGBA"), "PNG"), WHITE),
        (encoded(plain((0, 0), "LA"), "PNG"), WHITE),
        (encoded(plain(GREEN), "PNG", transparency=GREEN), WHITE),
        (encoded(plain(GREEN), "GIF", save_all=True, append_images=[plain(BLUE), plain(RED)]), GREEN),
        (encoded(plain(GREEN), "WEBP", save_all=True, append_images=[plain(BLUE)], lossless=True), GREEN),
    ],
)
def test_picture_of_every_kind_is_read_in_its_colour(data: bytes, colour: tuple[int, int, int]) -> None:
    picture = load_picture(data, SIZE, max_pixels=256)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("kind", ["RGBA", "PA"])
def test_alpha_is_composited_on_white(kind: str) -> None:
    image = cut_out("RGBA") if kind == "RGBA" else cut_out("RGBA").quantize(4)
    picture = load_picture(encoded(image, "PNG"), 16, max_pixels=256)
    assert mean_colour(picture[:, :8]) == list(RED) and mean_colour(picture[:, 8:]) == list(WHITE)


def test_exif_rotation_is_applied() -> None:
    picture = load_picture(turned(), 16, max_pixels=256)
    assert np.abs(picture[:6].astype(int) - RED).max() < 16
    assert np.abs(picture[10:].astype(int) - BLUE).max() < 16


@pytest.mark.parametrize("wide", [True, False])
def test_picture_is_resized_to_cover_and_cropped_at_its_centre(wide: bool) -> None:
    image = Image.new("RGB", (96, 32), RED)
    image.paste(GREEN, (20, 0, 76, 32))
    image = image if wide else image.transpose(Image.Transpose.ROTATE_90)
    assert mean_colour(load_picture(encoded(image, "PNG"), SIZE, max_pixels=96 * 32)) == list(GREEN)


def test_picture_of_the_right_size_keeps_every_pixel() -> None:
    image = noise((32, 32))
    assert (load_picture(encoded(image, "PNG"), 32, max_pixels=1024) == np.asarray(image)).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(noise(), "JPEG")[:-700], "truncated"),
        (encoded(noise(), "PNG")[:-700], "truncated"),
        (encoded(noise(), "PNG")[:40], "."),
        (encoded(noise(), "WEBP")[:-700], "."),
        (b"", "unknown picture format"),
        (b"GIF? no", "unknown picture format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown picture format"),
        (encoded(plain(0.5, "F"), "TIFF"), "mode F"),
    ],
)
def test_unreadable_picture_is_a_reject_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Reject, match=reason) as caught:
        load_picture(data, SIZE, max_pixels=10_000)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("side", [101, 200, 60_000])
def test_decompression_bomb_is_rejected_by_its_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_345)
    with pytest.raises(Reject, match="more pixels than max_pixels = 10000"):
        load_picture(bomb(side), SIZE, max_pixels=10_000)
    with pytest.raises(Reject, match="cannot be decoded"):
        load_picture(bomb(100), SIZE, max_pixels=10_000)
    assert Image.MAX_IMAGE_PIXELS == 12_345, "Pillow's own limit must be restored"


def test_folder_is_read_with_captions_of_both_kinds(tmp_path: Path) -> None:
    png = encoded(plain(), "PNG")
    row = json.dumps({"file_name": "c.png", "text": "from the  table"})
    files = {
        "a.png": png,
        "a.txt": "\ufeffa cat\n on a mat ",
        "deep/er/b.JPG": encoded(plain(), "JPEG"),
        "deep/er/b.txt": "été 🐈",
        "deep/c.png": png,
        "deep/c.txt": "beside",
        "deep/metadata.jsonl": f"{row}\n\n",
        ".hidden.png": png,
        ".git/d.png": png,
        "LICENSE": "none",
    }
    taken, rejected = outcome(folder_candidates(folder_of(tmp_path, files)))
    assert taken == {"a.png": "a cat on a mat", "deep/er/b.JPG": "été 🐈", "deep/c.png": "from the table"}
    assert rejected == {}


def test_every_fault_of_a_folder_is_named_with_its_reason(tmp_path: Path) -> None:
    png = encoded(plain(), "PNG")
    rows = [
        '{"file_name": "gone.png", "text": "x"}',
        "{",
        '{"file_name": "table.png"}',
        '{"file_name": "table.png", "text": "  "}',
        '{"file_name": "table.png", "text": "again"}',
        '{"file_name": "../outside.png", "text": "x"}',
    ]
    files = {
        "good.png": png,
        "good.txt": "a cat",
        "cut.jpg": encoded(noise(), "JPEG")[:-700],
        "cut.txt": "a cat",
        "empty.png": png,
        "empty.txt": " \n",
        "missing.png": png,
        "latin.png": png,
        "latin.txt": b"caf\xe9",
        "bomb.png": bomb(101),
        "bomb.txt": "a bomb",
        "words.png": "no picture",
        "words.txt": "words",
        "photo.heic": b"....ftypheic",
        "drawing.xyz": b"?",
        "drawing.txt": "a drawing",
        "good.webp": encoded(plain(), "WEBP"),
        "alone.txt": "no picture of me",
        "table.png": png,
        "metadata.jsonl": "\n".join(rows),
    }
    taken, rejected = outcome(folder_candidates(folder_of(tmp_path / "in", files)))
    assert taken == {"good.png": "a cat"}
    reasons = {
        "cut.jpg": "truncated",
        "empty.png": "empty caption",
        "missing.png": "no caption",
        "latin.png": "not UTF-8",
        "bomb.png": "max_pixels",
        "words.png": "unknown picture format",
        "photo.heic": "no caption",
        "drawing.xyz": "unknown picture format",
        "good.webp": "duplicate key: good.png",
        "alone.txt": "caption without a picture",
        "table.png": "empty caption",
        "metadata.jsonl:1": "gone.png is not there",
        "metadata.jsonl:2": "not JSON",
        "metadata.jsonl:3": "no file_name and text",
        "metadata.jsonl:5": "has a row already",
        "metadata.jsonl:6": "outside.png is not there",
    }
    assert rejected.keys() == reasons.keys()
    assert all(reason in rejected[where] for where, reason in reasons.items())


def pictures_with_captions(count: int, first: int = 0) -> dict[str, bytes | str]:
    """Files of `count` good pictures, each of its own grey."""
    files: dict[str, bytes | str] = {}
    for i in range(first, first + count):
        files[f"{i:03d}.png"] = encoded(plain((i, i, i)), "PNG")
        files[f"{i:03d}.txt"] = f"grey {i}"
    return files


def test_folder_of_a_dozen_pictures_becomes_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    candidates = folder_candidates(folder_of(tmp_path / "in", pictures_with_captions(12)))
    (tmp_path / "out").mkdir()
    metrics = write_own_pictures(tmp_path / "out", shard_params(), candidates)
    assert metrics == {"train_samples": 9, "heldout_samples": 3, "rejected": 0}
    seen = {}
    for split in ("train", "heldout"):
        dataset = PictureDataset(tmp_path / "out", split)
        pictures = dataset.pictures(range(len(dataset)))
        seen |= {caption: int(picture.mean()) for caption, picture in zip(dataset.captions, pictures, strict=True)}
    assert seen == {f"grey {i}": i for i in range(12)}


def test_too_many_rejects_stop_the_stage_and_stay_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = pictures_with_captions(20) | {"bad.png": "no picture", "bad.txt": "x", "worse.png": encoded(plain(), "PNG")}
    candidates = folder_candidates(folder_of(tmp_path / "in", files))
    for name in ("strict", "lenient"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        UserError, match=r"2 of 22 pictures rejected, 9\.1% where shard.max_reject_share is 9\.0%: bad.png"
    ):
        write_own_pictures(tmp_path / "strict", shard_params(max_reject_share=0.09), candidates)
    lines = (tmp_path / "results/rejects/shard.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["bad.png", "worse.png"]
    metrics = write_own_pictures(tmp_path / "lenient", shard_params(max_reject_share=2 / 22), candidates)
    assert metrics == {"train_samples": 17, "heldout_samples": 3, "rejected": 2}
    assert (tmp_path / "lenient/rejects.jsonl").read_text().splitlines() == lines


def test_held_out_pictures_are_those_of_the_lowest_hashes_of_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = []
    for step, first in enumerate((0, 40)):
        folder_of(tmp_path / "in", pictures_with_captions(40, first))
        out = tmp_path / f"out{step}"
        out.mkdir()
        write_own_pictures(out, shard_params(heldout_samples=50), folder_candidates(tmp_path / "in"))
        held.append(set(PictureDataset(out, "heldout").captions))
        assert held[-1].isdisjoint(PictureDataset(out, "train").captions)
    hashes = {i: hashlib.sha256(f"{i:03d}".encode()).hexdigest() for i in range(80)}
    assert held[0] == {f"grey {i}" for i in sorted(range(40), key=hashes.get)[:20]}
    assert held[1] == {f"grey {i}" for i in sorted(range(80), key=hashes.get)[:40]}


@pytest.mark.parametrize(
    ("pictures", "limit", "heldout"),
    [
        (1, 512, 1),
        (2, 512, 1),
        (10, 512, 5),
        (60, 512, 30),
        (60, 8, 8),
        (200, 512, 100),
        (999, 512, 100),
        (1_200, 512, 120),
        (1_200, 100, 100),
        (50_000, 512, 512),
    ],
)
def test_a_tenth_of_own_pictures_is_held_out_or_a_hundred_but_at_most_half_and_the_limit(
    pictures: int, limit: int, heldout: int
) -> None:
    assert heldout_count(pictures, limit) == heldout


def test_pictures_that_are_all_held_out_since_most_are_rejected_are_refused_with_the_number_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = pictures_with_captions(3) | {f"bad{i}.png": "no picture" for i in range(5)}
    candidates = folder_candidates(folder_of(tmp_path / "in", files))
    for name in ("refused", "taken"):
        (tmp_path / name).mkdir()
    words = r"^pictures: all 3 usable pictures are held out: set shard\.heldout_samples to 1 or less$"
    with pytest.raises(UserError, match=words):
        write_own_pictures(tmp_path / "refused", shard_params(max_reject_share=0.9), candidates)
    params = shard_params(max_reject_share=0.9, heldout_samples=1)
    metrics = write_own_pictures(tmp_path / "taken", params, candidates)
    assert metrics == {"train_samples": 2, "heldout_samples": 1, "rejected": 5}


def test_one_usable_picture_is_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="1 usable pictures: at least 2"):
        write_own_pictures(
            tmp_path, shard_params(), folder_candidates(folder_of(tmp_path / "in", pictures_with_captions(1)))
        )


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member to a foreign shard."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1.5
    archive.addfile(info, io.BytesIO(data))


def test_existing_shards_are_read_and_their_faults_named(tmp_path: Path) -> None:
    png, jpeg = encoded(plain(), "PNG"), encoded(plain(), "JPEG")
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        for name, data in {
            "prompt.png": png,
            "prompt.json": b'{"prompt": "a cat", "caption": "not this"}',
            "caption.webp": encoded(plain(), "WEBP"),
            "caption.json": b'{"caption": "a dog"}',
            "text.jpg": jpeg,
            "text.json": b'{"width": 16}',
            "text.txt": b"a cow",
            "broken.png": png,
            "broken.json": b"{",
            "wordless.png": png,
            "blind.txt": b"x",
            "empty.png": png,
            "empty.txt": b" ",
        }.items():
            add(archive, name, data)
    with tarfile.open(tmp_path / "2.tar", "w") as archive:
        add(archive, "text.png", png)
        add(archive, "text.txt", b"again")
        add(archive, "more/text.png", png)
        add(archive, "more/text.txt", b"another")
    taken, rejected = outcome(webdataset_candidates(tmp_path))
    assert taken == {
        "1.tar:prompt": "a cat",
        "1.tar:caption": "a dog",
        "1.tar:text": "a cow",
        "2.tar:more/text": "another",
    }
    reasons = {
        "1.tar:broken": "not JSON",
        "1.tar:wordless": "no caption",
        "1.tar:blind": "no picture",
        "1.tar:empty": "empty caption",
        "2.tar:text": "duplicate key: 1.tar:text",
    }
    assert rejected.keys() == reasons.keys()
    assert all(reason in rejected[where] for where, reason in reasons.items())


def test_damaged_source_shard_stops_with_its_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        add(archive, "a.png", encoded(noise(), "PNG"))
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[:2000])
    with pytest.raises(UserError, match=r"1\.tar: .*a\.png"):
        webdataset_candidates(tmp_path)


@pytest.mark.parametrize(
    ("read", "message"), [(folder_candidates, "is no folder"), (webdataset_candidates, "holds no .tar")]
)
def test_source_that_is_not_there_is_named(tmp_path: Path, read: object, message: str) -> None:
    with pytest.raises(UserError, match=f"shard.path .*none {message}"):
        read(tmp_path / "none")


def test_scenes_give_the_same_bytes_and_splits_that_differ(tmp_path: Path) -> None:
    params = shard_params(source="scenes", path=None, image_size=32, train_samples=12, heldout_samples=4)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert write_scenes(tmp_path / name, params, seed=3) == {"train_samples": 12, "heldout_samples": 4}
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    pictures = [PictureDataset(tmp_path / "a", split).pictures(range(4)) for split in ("train", "heldout")]
    assert pictures[0].shape == (4, 32, 32, 3)
    assert all((train != heldout).any() for train in pictures[0] for heldout in pictures[1])


def test_a_further_data_set_has_scenes_of_its_own_from_the_same_seed(tmp_path: Path) -> None:
    params = shard_params(source="scenes", path=None, train_samples=12, heldout_samples=4, image_size=16)
    for name, data_set in (("first", None), ("sft", "sft"), ("again", "sft"), ("other", "other")):
        (tmp_path / name).mkdir()
        write_scenes(tmp_path / name, params, 3, data_set)
    tars = {name: (tmp_path / name / "train-00000.tar").read_bytes() for name in ("first", "sft", "again", "other")}
    assert tars["sft"] == tars["again"] and len(set(tars.values())) == 3


def test_own_shards_pass_through_the_webdataset_source_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = shard_params(source="scenes", path=None, image_size=32, train_samples=12, heldout_samples=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_scenes(tmp_path / "a", params, seed=3)
    write_own_pictures(tmp_path / "b", params, webdataset_candidates(tmp_path / "a" / "train-00000.tar"))
    before = PictureDataset(tmp_path / "a", "train")
    read = {
        bytes(picture): caption for picture, caption in zip(before.pictures(range(5)), before.captions, strict=False)
    }
    after: dict[bytes, str] = {}
    for split in ("train", "heldout"):
        dataset = PictureDataset(tmp_path / "b", split)
        after |= dict(zip(map(bytes, dataset.pictures(range(len(dataset)))), dataset.captions, strict=True))
    assert after == read


def test_one_bad_file_among_pictures_is_a_reject_and_the_others_are_taken(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", {"good.png": encoded(plain(), "PNG"), "good.txt": "a cat", "link.txt": "x"})
    (folder / "link.png").symlink_to(folder / "gone.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "pipe.txt").write_text("x")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(plain(), "PNG"))
    (folder / "metadata.jsonl").write_text('{"file_name": "good.png", "n": ' + "1" * 5000 + "}\n" + "[" * 10**5)
    taken, rejected = outcome(folder_candidates(folder))
    assert taken == {"good.png": "a cat"}
    reasons = {"link.png": "gone", "pipe.png": "no file", "caf\\xe9.png": "not UTF-8"}
    reasons |= {f"metadata.jsonl:{row}": "not JSON" for row in (1, 2)}
    assert rejected.keys() == reasons.keys()
    assert all(reason in rejected[where] for where, reason in reasons.items())


def test_a_caption_of_control_characters_alone_is_empty() -> None:
    with pytest.raises(Reject, match="empty"):
        clean_caption("\x00\x00 \x1f")


def test_pictures_whose_keys_have_dots_are_counted_one_by_one_and_compressed_shards_too(tmp_path: Path) -> None:
    png = encoded(plain(), "PNG")
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        for key in ("v1.0", "v1.1", "v2", "v2.5"):
            add(archive, f"{key}.png", png)
            add(archive, f"{key}.txt", b"a cat")
        add(archive, "v2.thumb.png", png)
    (tmp_path / "2.tar.gz").write_bytes(b"")
    taken, rejected = outcome(webdataset_candidates(tmp_path))
    assert taken == {"1.tar:v2": "a cat"}
    assert rejected.keys() == {"1.tar:v1.0.png", "1.tar:v1.1.png", "1.tar:v2.5.png", "2.tar.gz"}


def test_any_damage_to_a_shard_or_its_json_is_read_rejected_or_refused_in_one_line(tmp_path: Path) -> None:
    draws, path = random.Random(7), tmp_path / "1.tar"
    with tarfile.open(path, "w") as archive:
        for key in "ab":
            add(archive, f"{key}.png", encoded(plain(), "PNG"))
            add(archive, f"{key}.json", b'{"prompt": "a cat", "n": [1, 2.5e3, {}]}')
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draws.randint(1, 4)):
            damaged[draws.randrange(4096)] = draws.randrange(256)
        path.write_bytes(damaged[: draws.choice([len(damaged), draws.randrange(len(damaged))])])
        try:
            outcome(webdataset_candidates(tmp_path))
        except UserError as error:
            assert "\n" not in str(error)

"""Any damage to the user's own pictures is read, rejected with a count, or refused in one line."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("hypothesis", reason="hypothesis is missing: pip install -e '.[dev]' -c constraints.txt")

from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tasks.data.picture_files import load_picture
from tasks.data.sources.picture_candidate import Reject
from tasks.data.sources.sana_shard_list import META
from tasks.params.params_files import PARAMS_FILE, read_yaml
from tasks.params.picture_params import Shard
from tasks.params.typed_values import build
from tasks.shard import own_candidates, write_own_pictures
from tests.fuzz.damaged_bytes import changed, damaged
from tests.fuzz.damaged_json import damaged_json
from tests.fuzz.outcomes import outcome

SIZE = 8
SECTION = read_yaml(Path(__file__).parents[2] / PARAMS_FILE)["shard"]
HEADER = tarfile.BLOCKSIZE
CHECKSUM = slice(148, 156)
FIELDS = (0, 100, 108, 116, 124, 136, 148, 156, 157, 257, 263, 265, 297, 329, 337, 345, 386, 482, 483, 512)
"""Bytes of a tar's header at which a field begins, those of GNU's sparse files among them."""
NUMBERS = (
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"77777777777\x00",
    b"00000000000\x00",
    b"-0000000001\x00",
    b"99999999999\x00",
)
KINDS = tuple(bytes([kind]) for kind in b"\x000123456789xgLKSDNMVX")
PAX = (
    b"size=9999999999999999",
    b"size=-1",
    b"size=" + b"9" * 5_000,
    b"path=caf\xe9.png",
    b"path=a\nb.png",
    b"path=" + b"a" * 300 + b".png",
    b"path=b.0.png",
    b"mtime=nan",
    b"mtime=1e999",
    b"hdrcharset=BINARY",
    b"GNU.sparse.map=1,2,3",
    b"GNU.sparse.size=9",
    b"GNU.sparse.realsize=-1",
    b"GNU.sparse.major=1\n22 GNU.sparse.minor=0",
    b"GNU.sparse.name=c.png",
    b"GNU.sparse.offset=1",
    b"comment=\xff\xfe",
)


def picture(shade: int, kind: str = "PNG") -> bytes:
    """A picture file of 16 by 12 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), shade, np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(key: str, shade: int, record: bytes | None = None) -> dict[str, bytes]:
    """The members of one sample in the layout of WebDataset and of SANA."""
    plain = json.dumps({"height": 12, "width": 16, "prompt": f"a {key} cat"}).encode()
    return {f"{key}.json": plain if record is None else record, f"{key}.png": picture(shade)}


def pax_header(records: bytes) -> bytes:
    """An extended header with one record, whose length is right, and its data."""
    length = next(n for n in range(len(records) + 3, len(records) + 9) if len(f"{n} ") + len(records) + 1 == n)
    data = f"{length} ".encode() + records + b"\n"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % HEADER)


def with_checksum(header: bytes) -> bytes:
    """A header whose checksum is right."""
    blank = header[: CHECKSUM.start] + b" " * 8 + header[CHECKSUM.stop :]
    return header[: CHECKSUM.start] + b"%06o\x00 " % sum(blank) + header[CHECKSUM.stop :]


def damaged_tar(data: bytes) -> SearchStrategy[bytes]:
    """A tar with any damage, or with a damaged header whose checksum is right, or with an extended header before it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        places = [member.offset for member in archive]
    value = st.sampled_from(NUMBERS) | st.sampled_from(KINDS) | st.binary(min_size=1, max_size=100)
    field = st.tuples(st.sampled_from(FIELDS[:-1]), value)
    headers = st.tuples(st.sampled_from(places), st.lists(field, min_size=1, max_size=3))
    records = st.tuples(st.sampled_from(places), st.sampled_from(PAX) | st.binary(min_size=1, max_size=60))
    return st.one_of(
        damaged(data),
        headers.map(lambda drawn: in_header(data, *drawn)),
        records.map(lambda drawn: data[: drawn[0]] + pax_header(drawn[1]) + data[drawn[0] :]),
    )


def in_header(data: bytes, place: int, fields: list[tuple[int, bytes]]) -> bytes:
    """A tar with other values in fields of the header at byte `place`, whose checksum is right."""
    header = data[place : place + HEADER]
    for start, value in fields:
        header = (header[:start] + value + header[start + len(value) :])[:HEADER]
    return data[:place] + with_checksum(header) + data[place + HEADER :]


def settle(files: dict[str, bytes], source: str, **changes: object) -> dict[str, float] | None:
    """The counts of the stage `shard` over a folder of these files, or None if it refuses them in one line.

    Each candidate is counted as written, as a reject or as left out.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "pictures", Path(place) / "out"
        for path in (folder, out):
            path.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        values = {
            "source": source,
            "path": str(folder),
            "image_size": SIZE,
            "max_reject_share": 0.99,
            "heldout_samples": 1,
        }
        params = build(Shard, SECTION | {"aspect_buckets": False} | values | changes, "here")

        def stage() -> tuple[dict[str, float], int]:
            candidates = own_candidates(params, folder, seed=0)
            return write_own_pictures(out, params, candidates, Path(place) / "rejects.jsonl"), len(candidates)

        result = outcome(stage)
    if result is None:
        return None
    counts, candidates = result
    assert sum(counts.values()) == candidates
    return counts


SAMPLES = sample("a", 10) | sample("b", 90) | sample("c", 200)
TAR = tar_of(SAMPLES | {f"{'d' * 120}.png": picture(5), f"{'d' * 120}.txt": b"a dog"})


def test_undamaged_files_are_read_whole() -> None:
    assert settle({"0.tar": TAR}, "webdataset") == {"train_samples": 3, "heldout_samples": 1, "rejected": 0}
    assert settle(sana_files(), "sana", caption_suffixes=SUFFIXES) == {
        "train_samples": 2,
        "heldout_samples": 1,
        "rejected": 0,
    }
    assert settle(FOLDER | {"metadata.jsonl": ROWS}, "folder") == {
        "train_samples": 1,
        "heldout_samples": 1,
        "rejected": 0,
    }


@given(data=damaged_tar(TAR))
@example(data=pax_header(b"size=9999999999999999") + TAR)
@example(data=pax_header(b"path=caf\xe9.png") + TAR)
@example(data=in_header(TAR, 0, [(0, b"caf\xe9")]))
@example(data=in_header(TAR, 0, [(156, b"S"), (482, b"\x01")])[:HEADER])
@example(data=in_header(TAR, 0, [(156, b"L"), (124, b"77777777777\x00")]))
def test_any_damage_to_a_tar_is_counted_or_refused(data: bytes) -> None:
    settle({"0.tar": data}, "webdataset")


@given(record=damaged_json({"height": 12, "width": 16, "prompt": "a cat", "more": {"n": [1, 2.5]}}))
def test_any_damage_to_a_samples_json_costs_that_sample_alone(record: bytes) -> None:
    members = sample("a", 10, record) | sample("b", 90) | sample("c", 200)
    for source in ("webdataset", "sana"):
        counts = settle(sana_files(members=members), source, caption_suffixes=())
        assert counts is not None and counts["rejected"] <= 1


SUFFIXES = ["_VILA"]
CAPTIONS = {"a": {"VILA": "a black cat", "short": "cat"}, "b": {"VILA": "a cat"}, "c": {"prompt": "a white cat"}}
SCORES = {"a": {"VILA": "27.10", "prompt": "26"}, "b": {"VILA": 30.5, "prompt": "12"}, "c": {"prompt": "28.0"}}


def sana_files(
    members: dict[str, bytes] | None = None, changes: Callable[[dict], dict] = dict, **files: bytes
) -> dict[str, bytes]:
    """The files of a folder in SANA's layout. `files` take the place of others, by the last part of their names."""
    tar = tar_of(members or SAMPLES)
    entry = {"url": "00000.tar", "nsamples": 3, "filesize": len(tar)}
    meta = {"name": "sana-dev", "__kind__": "SANA-WebDataset", "wids_version": 1, "shardlist": [entry]}
    return {
        "00000.tar": tar,
        META: files.get("meta", json.dumps(meta).encode()),
        "00000_VILA.json": files.get("captions", json.dumps(CAPTIONS).encode()),
        "00000_VILA_clip_score.json": files.get("scores", json.dumps(SCORES).encode()),
    }


META_VALUE = json.loads(sana_files()[META])


@given(meta=damaged_json(META_VALUE))
@example(meta=json.dumps(META_VALUE).encode().replace(b"00000.tar", b"x" * 5_000 + b".tar"))
@example(meta=json.dumps(META_VALUE).encode().replace(b"00000.tar", b"a\\nb\\ud800.tar"))
def test_any_damage_to_wids_meta_is_read_or_refused(meta: bytes) -> None:
    settle(sana_files(meta=meta), "sana", caption_suffixes=SUFFIXES)


@given(captions=damaged_json(CAPTIONS), several=st.booleans())
@example(captions=b'{"a": {"VILA\\u0000": "a cat"}, "b": {"\\ud800": "a cat"}}', several=False)
def test_any_damage_to_a_file_of_captions_is_counted_or_refused(captions: bytes, several: bool) -> None:
    settle(sana_files(captions=captions), "sana", caption_suffixes=SUFFIXES, captions_per_sample=1 + 2 * several)


@given(scores=damaged_json(SCORES), threshold=st.sampled_from((25.0, 1e-300)), several=st.booleans())
def test_any_damage_to_a_file_of_scores_is_counted_or_refused(scores: bytes, threshold: float, several: bool) -> None:
    settle(
        sana_files(scores=scores),
        "sana",
        caption_suffixes=SUFFIXES,
        caption_score_threshold=threshold,
        captions_per_sample=1 + 2 * several,
    )


FOLDER = {"a.png": picture(10), "b.png": picture(90)}
ROW_A, ROW_B = ({"file_name": f"{key}.png", "text": f"a {key} cat"} for key in "ab")
ROWS = b"".join(json.dumps(row).encode() + b"\n" for row in (ROW_A, ROW_B))


@given(rows=damaged(ROWS))
def test_any_damage_to_metadata_is_counted(rows: bytes) -> None:
    counts = settle(FOLDER | {"metadata.jsonl": rows, "a.txt": b"a cat", "b.txt": b"a cat"}, "folder")
    assert counts is not None


@given(row=damaged_json(ROW_B))
def test_a_damaged_row_of_metadata_costs_that_row_alone(row: bytes) -> None:
    lines = [json.dumps(ROW_A).encode(), row, json.dumps({"file_name": "c.png", "text": "a cat"}).encode()]
    files = FOLDER | {"c.png": picture(200), "metadata.jsonl": b"\n".join(lines) + b"\n"}
    counts = settle(files, "folder")
    assert counts is not None and counts["train_samples"] + counts["heldout_samples"] >= 2


@given(
    data=st.sampled_from(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")).flatmap(
        lambda kind: damaged(picture(90, kind)) | changed(picture(90, kind), 0, 64)
    )
)
def test_any_damage_to_a_picture_is_read_or_is_a_reject(data: bytes) -> None:
    pixels = outcome(lambda: load_picture(data, SIZE, max_pixels=10_000), refusal=Reject)
    assert pixels is None or (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)


@given(name=st.binary(min_size=1, max_size=60).filter(lambda name: b"/" not in name and b"\0" not in name))
@example(name=b"caf\xe9")
def test_a_file_of_any_name_is_counted(name: bytes) -> None:
    files = FOLDER | {"metadata.jsonl": ROWS, os.fsdecode(name + b".jpg"): picture(1, "JPEG")}
    assert settle(files | {os.fsdecode(name + b".txt"): b"a cat"}, "folder") is not None

"""Existing WebDataset shards as a source.

A sample has a picture (`png`, `jpg`, `jpeg` or `webp`). Its caption is `prompt` or `caption` in its `json`, or a `txt`.
"""

from functools import partial
from pathlib import Path

from tasks.data.sources.dotted_keys import hidden_pictures
from tasks.data.sources.picture_candidate import (
    Candidate,
    Reject,
    clean_caption,
    decode_text,
    is_utf8,
    parse_json,
    reject_duplicates,
    rejected,
    unnameable,
)
from tasks.data.tar_shard import TarShard
from tasks.system.errors import UserError

PICTURES = ("png", "jpg", "jpeg", "webp")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
CAPTIONS = ("prompt", "caption")


def webdataset_candidates(path: Path) -> list[Candidate]:
    """Every sample of the shard `path`, or of all `*.tar` in and below the folder `path`, in the order of their names.

    A key that an earlier sample has reads as a reject. Raises UserError if there is no shard, or one is damaged.
    """
    shards = [path] if path.is_file() else sorted(path.rglob("*.tar"))
    if not shards:
        raise UserError(f"params.yaml: shard.path {path} holds no .tar: name a shard or a folder of them")
    candidates = []
    for shard in map(TarShard, shards):
        name = shard.path.name if path.is_file() else shard.path.relative_to(path).as_posix()
        for sample, key in enumerate(shard.keys):
            extensions = shard.extensions(sample)
            hidden = hidden_pictures(key, name, extensions, PICTURES)
            where = f"{name}:{key}"
            if not is_utf8(where):
                candidates.append(unnameable(where))
            elif not hidden or any(extension in PICTURES for extension in extensions):
                candidates.append(Candidate(key, where, partial(_read, shard, sample)))
            candidates += hidden
    return reject_duplicates([*candidates, *_compressed(path)])


def _compressed(path: Path) -> list[Candidate]:
    """A reject for each compressed shard in and below a folder. They are not read, as no member can be sought."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.name.endswith(COMPRESSED))
    return [rejected(name, name, "a compressed shard is not read: unpack it to a .tar") for name in names]


def _read(shard: TarShard, sample: int) -> tuple[bytes, str]:
    extensions = shard.extensions(sample)
    picture = next((extension for extension in PICTURES if extension in extensions), None)
    if picture is None:
        raise Reject(f"no picture among its members {extensions}")
    return shard.read(sample, picture), clean_caption(_caption(shard, sample, extensions))


def _caption(shard: TarShard, sample: int, extensions: list[str]) -> str:
    if "json" in extensions:
        record = parse_json(shard.read(sample, "json"), "its json")
        values = [record.get(name) for name in CAPTIONS] if isinstance(record, dict) else []
        caption = next((value for value in values if isinstance(value, str)), None)
        if caption is not None:
            return caption
    if "txt" in extensions:
        return decode_text(shard.read(sample, "txt"))
    raise Reject("no caption: neither prompt or caption in its json, nor a txt")

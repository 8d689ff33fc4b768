"""Existing WebDataset shards as a source.

A sample has a picture (`png`, `jpg`, `jpeg` or `webp`). Its caption is `prompt` or `caption` in its `json`, or a `txt`.
"""

import json
from functools import partial
from pathlib import Path

from tasks.data.sources.picture_candidate import Candidate, Reject, clean_caption, decode_text, reject_duplicates
from tasks.data.tar_shard import TarShard
from tasks.system.errors import UserError

PICTURES = ("png", "jpg", "jpeg", "webp")
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
        candidates += [
            Candidate(key, f"{name}:{key}", partial(_read, shard, sample)) for sample, key in enumerate(shard.keys)
        ]
    return reject_duplicates(candidates)


def _read(shard: TarShard, sample: int) -> tuple[bytes, str]:
    extensions = shard.extensions(sample)
    picture = next((extension for extension in PICTURES if extension in extensions), None)
    if picture is None:
        raise Reject(f"no picture among its members {extensions}")
    return shard.read(sample, picture), clean_caption(_caption(shard, sample, extensions))


def _caption(shard: TarShard, sample: int, extensions: list[str]) -> str:
    if "json" in extensions:
        try:
            record = json.loads(decode_text(shard.read(sample, "json")))
        except json.JSONDecodeError:
            raise Reject("its json is not JSON") from None
        values = [record.get(name) for name in CAPTIONS] if isinstance(record, dict) else []
        caption = next((value for value in values if isinstance(value, str)), None)
        if caption is not None:
            return caption
    if "txt" in extensions:
        return decode_text(shard.read(sample, "txt"))
    raise Reject("no caption: neither prompt or caption in its json, nor a txt")

"""A folder of WebDataset shards: `<split>-00000.tar` and on, and `index.json` with the count, bytes and sha256 of each.

Samples follow SANA's layout: `<key>.json` with height, width and prompt, beside the picture (`<key>.png`) or what
encodes it.
The bytes of a shard depend on its samples alone: members carry no time, and a fixed owner and mode.
"""

import bisect
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from tasks.data.tar_shard import TarShard
from tasks.errors import UserError
from tasks.files import read_json, sha256_file, write_json

INDEX = "index.json"
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Sample:
    """A sample to write: its key and the bytes of each member by extension."""

    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class ShardEntry:
    """What `index.json` says of one shard."""

    name: str
    samples: int
    bytes: int
    sha256: str


def describe(height: int, width: int, prompt: str, **more: str) -> bytes:
    """A sample's `.json` member: the size of its picture in pixels, its caption, and `more` of it."""
    record = {"height": height, "width": width, "prompt": prompt, **more}
    return json.dumps(record, ensure_ascii=False, sort_keys=True).encode()


def write_split(folder: Path, split: str, samples: Iterable[Sample], samples_per_shard: int) -> list[ShardEntry]:
    """Write the shards of one split; samples are taken one at a time. Pass what all splits return to `write_index`."""
    remaining = iter(samples)
    entries: list[ShardEntry] = []
    for first in remaining:
        path = folder / f"{split}-{len(entries):05d}.tar"
        count = _write_shard(path, itertools.chain([first], itertools.islice(remaining, samples_per_shard - 1)))
        entries.append(ShardEntry(path.name, count, path.stat().st_size, sha256_file(path)))
    return entries


def _write_shard(path: Path, samples: Iterator[Sample]) -> int:
    count = 0
    with (
        open(path, "wb") as file,
        TarWriter(file, user="sana15", group="sana15", mode=0o444, mtime=0, encoder=False) as writer,
    ):
        for sample in samples:
            writer.write({"__key__": sample.key, **sample.members})
            count += 1
    return count


def write_index(folder: Path, splits: dict[str, list[ShardEntry]]) -> None:
    """Write `index.json` for the shards that `write_split` wrote."""
    listed = {split: [asdict(entry) for entry in entries] for split, entries in splits.items()}
    write_json(folder / INDEX, {"splits": listed})


class ShardReader:
    """Random access to the samples of one split by their number; a shard is opened when it is first needed."""

    def __init__(self, folder: Path, split: str) -> None:
        """Read the index. Raises UserError if the folder has none or lacks the split."""
        self.folder, self.split = Path(folder), split
        splits = read_json(self.folder / INDEX)["splits"]
        if split not in splits:
            raise UserError(f"{self.folder / INDEX} has no split {split!r}: it lists {sorted(splits)}")
        self._entries = [ShardEntry(**entry) for entry in splits[split]]
        self._ends = list(itertools.accumulate(entry.samples for entry in self._entries))
        self._shards: dict[int, TarShard] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def key(self, index: int) -> str:
        """The key of a sample."""
        shard, sample = self._locate(index)
        return shard.keys[sample]

    def read(self, index: int, extension: str) -> memoryview:
        """The bytes of a sample's member. Raises IndexError beyond the split, UserError for a shard that is damaged."""
        shard, sample = self._locate(index)
        return shard.read(sample, extension)

    def record(self, index: int) -> dict[str, Any]:
        """A sample's `.json` member."""
        return json.loads(bytes(self.read(index, "json")))

    @cached_property
    def captions(self) -> list[str]:
        """The prompt of every sample."""
        return [self.record(index)["prompt"] for index in range(len(self))]

    def _locate(self, index: int) -> tuple[TarShard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: sample {index} of {len(self)} in split {self.split}")
        number = bisect.bisect_right(self._ends, index)
        if number not in self._shards:
            self._shards[number] = self._open(self._entries[number])
        return self._shards[number], index - self._ends[number] + self._entries[number].samples

    def _open(self, entry: ShardEntry) -> TarShard:
        path = self.folder / entry.name
        if not path.is_file():
            raise UserError(f"{path} is missing: run the stage that writes {self.folder} again")
        shard = TarShard(path)
        if len(shard) != entry.samples or path.stat().st_size != entry.bytes:
            found = f"{len(shard)} samples in {path.stat().st_size} bytes"
            listed = f"{entry.samples} in {entry.bytes}"
            raise UserError(f"{path} has {found}, {INDEX} says {listed}: run the stage that writes {self.folder} again")
        return shard

"""A folder of WebDataset shards: `<split>-00000.tar` and on, and `index.json` with the count, bytes and sha256 of each.

Beside each shard lies `<split>-00000.index.npy` with the place of every member, so that a sample is read alone. If
samples differ in size, `<split>-00000.sizes.npy` (named in `index.json`) has the heights and widths of a shard's
samples in pixels (uint16). So the samples of one size are found without reading a shard.

Samples follow SANA's layout: `<key>.json` with height, width and prompt, beside the picture (`<key>.png`) or its
encodings. If several captions of a picture are kept, the json has them under `captions`, each with its weight. The
bytes of a shard depend on its samples alone: members have no time, and a fixed owner and mode.
"""

import bisect
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from tasks.data.indexed_shard import IndexedShard, SpanRecorder
from tasks.data.npy_arrays import to_npy, view_npy
from tasks.data.sample_order import WINDOW_SHARDS, ShardedSamples
from tasks.system.errors import UserError
from tasks.system.files import read_json, write_bytes, write_json
from tasks.system.manifest import sha256_file

INDEX = "index.json"
SPANS = ".index.npy"
SIZES = ".sizes.npy"
OPEN_SHARDS = 2 * WINDOW_SHARDS
"""Shards that a reader keeps open, each with two file descriptors. A batch may come from the shards of two windows."""

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Sample:
    """A sample to write: its key, the bytes of each member by extension, and (height, width) if sizes may differ."""

    key: str
    members: dict[str, bytes]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ShardEntry:
    """What `index.json` says of one shard."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index: str
    members: list[str]
    sizes: str | None = None


def _read_entry(value: Any, where: str) -> ShardEntry:
    """An entry of `index.json`. Raises UserError, naming `where`, if it is not one that `write_index` has written."""
    try:
        entry = ShardEntry(**value)
    except TypeError:  # it is no mapping, or has other keys
        entry = None
    if entry is None or not _is_whole(entry):
        raise UserError(f"{where} is no entry of a shard: run the stage that writes it again")
    return entry


def _is_whole(entry: ShardEntry) -> bool:
    """Whether an entry has values of the right types, and room for its samples in its bytes."""
    texts = (entry.name, entry.sha256, entry.index, "" if entry.sizes is None else entry.sizes)
    if not isinstance(entry.members, list) or not all(isinstance(text, str) for text in (*texts, *entry.members)):
        return False
    if type(entry.samples) is not int or type(entry.bytes) is not int or not entry.members:
        return False
    return 0 < entry.samples * len(entry.members) * BLOCKSIZE <= entry.bytes


def describe(height: int, width: int, prompt: str, **more: object) -> bytes:
    """A sample's `.json` member: the size of its picture in pixels, its caption, and the entries in `more`."""
    record = {"height": height, "width": width, "prompt": prompt, **more}
    return json.dumps(record, ensure_ascii=False, sort_keys=True).encode()


def write_split(folder: Path, split: str, samples: Iterable[Sample], samples_per_shard: int) -> list[ShardEntry]:
    """Write the shards of one split, taking one sample at a time. Pass the entries of all splits to `write_index`."""
    remaining = iter(samples)
    entries: list[ShardEntry] = []
    for first in remaining:
        path = folder / f"{split}-{len(entries):05d}.tar"
        entries.append(_write_shard(path, itertools.chain([first], itertools.islice(remaining, samples_per_shard - 1))))
    return entries


def _write_shard(path: Path, samples: Iterator[Sample]) -> ShardEntry:
    from webdataset import TarWriter  # imported here, because training also runs where it is not installed

    sizes: list[tuple[int, int] | None] = []
    spans = SpanRecorder()
    with (
        open(path, "wb") as file,
        TarWriter(file, user="sana15", group="sana15", mode=0o444, mtime=0, encoder=False) as writer,
    ):
        for sample in samples:
            begin = writer.tarstream.offset
            writer.write({"__key__": sample.key, **sample.members})
            spans.add(begin, writer.tarstream.offset, sample.members)
            sizes.append(sample.size)
    index = path.with_suffix(SPANS)
    write_bytes(index, to_npy(spans.array()))
    listed = _write_sizes(path, sizes)
    return ShardEntry(path.name, len(sizes), path.stat().st_size, sha256_file(path), index.name, spans.members, listed)


def _write_sizes(shard: Path, sizes: list[tuple[int, int] | None]) -> str | None:
    """Write the sizes of a shard's samples beside it, if they have any; returns the file's name."""
    if None in sizes:
        return None
    path = shard.with_suffix(SIZES)
    write_bytes(path, to_npy(np.array(sizes, np.uint16)))
    return path.name


def write_index(folder: Path, splits: dict[str, list[ShardEntry]]) -> None:
    """Write `index.json` for the shards that `write_split` wrote."""
    listed = {split: [_plain(entry) for entry in entries] for split, entries in splits.items()}
    write_json(folder / INDEX, {"splits": listed})


def _plain(entry: ShardEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if value is not None}


def _kinds_of(sizes: np.ndarray) -> np.ndarray:
    """Height and width (samples, 2) as one number for each sample, int64 (samples,)."""
    return sizes[:, 0].astype(np.int64) << 16 | sizes[:, 1]


class ShardReader:
    """Random access to the samples of one split by their number. A shard is opened when it is first needed."""

    def __init__(self, folder: Path, split: str) -> None:
        """Read `index.json`. Raises UserError if the folder has none, if it is damaged, or does not list the split."""
        self.folder, self.split = Path(folder), split
        index = self.folder / INDEX
        value = read_json(index)
        splits = value.get("splits") if isinstance(value, dict) else None
        if not isinstance(splits, dict) or not isinstance(splits.get(split, []), list):
            raise UserError(f"{index} is no index of shards: run the stage that writes it again")
        if split not in splits:
            raise UserError(f"{index} has no split {split!r}: it lists {sorted(splits)}")
        self._entries = [
            _read_entry(entry, f"{index}: splits.{split}[{number}]") for number, entry in enumerate(splits[split])
        ]
        self._ends = list(itertools.accumulate(entry.samples for entry in self._entries))
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._kinds_of_shard = lru_cache(maxsize=OPEN_SHARDS)(self._read_kinds)

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[Path, str]]:
        """A worker process that is not forked opens the folder anew."""
        return ShardReader, (self.folder, self.split)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def members(self) -> list[str]:
        """The extensions of the members that every sample has."""
        return self._entries[0].members if self._entries else []

    def key(self, index: int) -> str:
        """The key of a sample."""
        shard, sample = self._locate(index)
        return shard.key(sample)

    def place(self, index: int) -> str:
        """Where a sample lies, for messages: `outputs/encoded/train-00002.tar: sample 17 of train (key 0017)`."""
        shard, sample = self._locate(index)
        return f"{shard.path}: sample {index} of {self.split} (key {shard.key(sample)})"

    def read(self, index: int, extension: str) -> memoryview:
        """The bytes of a sample's member. Raises IndexError beyond the split, and UserError for a damaged shard."""
        return self.read_members(index, (extension,))[0]

    def read_members(self, index: int, extensions: Sequence[str]) -> list[memoryview]:
        """The bytes of several members of a sample, by one read of the file. Raises the same errors as `read`."""
        shard, sample = self._locate(index)
        return shard.read(sample, extensions)

    def record(self, index: int) -> dict[str, Any]:
        """A sample's `.json` member, whose prompt is text. Raises the errors of `read`, and UserError if it is not."""
        try:
            record = json.loads(bytes(self.read(index, "json")).decode())
            record["prompt"].encode()  # fails for a value that is no text, and for text that no file can hold
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            where = f"{self.folder}: sample {index} of {self.split}"
            raise UserError(f"{where} has no json with a prompt: run the stage that writes it again") from None
        return record

    @cached_property
    def captions(self) -> list[str]:
        """The prompt of every sample."""
        return [self.record(index)["prompt"] for index in range(len(self))]

    @cached_property
    def sizes(self) -> np.ndarray | None:
        """Height and width in pixels of every sample, uint16 (samples, 2). None if the shards record no sizes."""
        if not self._sized:
            return None
        return np.concatenate([self._sizes(entry) for entry in self._entries])

    @cached_property
    def size_groups(self) -> list[np.ndarray]:
        """The indices of the samples of each size, ascending. Groups are in order of height, then width.

        If the shards record no sizes, all samples have one size and are one group.
        """
        kinds = self._kinds
        return [np.arange(len(self))] if kinds is None else [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]

    @cached_property
    def sharded_groups(self) -> list[ShardedSamples]:
        """The samples of each size for training, in the order of `size_groups`, without an index for every sample."""
        if not self._sized:
            return [ShardedSamples([entry.samples for entry in self._entries], self._indices_of)]
        counted = [np.unique(self._read_kinds(number), return_counts=True) for number in range(len(self._entries))]
        kinds = np.unique(np.concatenate([found for found, _ in counted]))
        counts = np.zeros((len(kinds), len(counted)), np.int64)
        for number, (found, count) in enumerate(counted):
            counts[np.searchsorted(kinds, found), number] = count
        return [
            ShardedSamples(row, partial(self._indices_of, kind=kind))
            for row, kind in zip(counts, kinds.tolist(), strict=True)
        ]

    def batches(self, indices: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """`indices` cut into batches of one size each, size by size. Within a size they keep the given order."""
        kinds = np.zeros(len(indices)) if self._kinds is None else self._kinds[indices]
        for kind in np.unique(kinds):
            chosen = indices[kinds == kind]
            for start in range(0, len(chosen), batch_size):
                yield chosen[start : start + batch_size]

    @cached_property
    def _kinds(self) -> np.ndarray | None:
        """Height and width of every sample as one number (samples,), or None if the shards record no sizes."""
        return None if self.sizes is None else _kinds_of(self.sizes)

    @property
    def _sized(self) -> bool:
        return bool(self._entries) and all(entry.sizes is not None for entry in self._entries)

    def _read_kinds(self, number: int) -> np.ndarray:
        """Height and width of every sample of a shard as one number."""
        return _kinds_of(self._sizes(self._entries[number]))

    def _indices_of(self, number: int, kind: int | None = None) -> np.ndarray:
        """The indices of the samples of a shard, ascending; with `kind` of those that have this size."""
        samples = self._entries[number].samples
        own = np.arange(samples) if kind is None else np.flatnonzero(self._kinds_of_shard(number) == kind)
        return own + (self._ends[number] - samples)

    def _sizes(self, entry: ShardEntry) -> np.ndarray:
        path = self.folder / str(entry.sizes)
        if not os.path.isfile(path):  # False too for a name that is too long
            raise UserError(f"{path} is missing: run the stage that writes {self.folder} again")
        sizes = view_npy(memoryview(path.read_bytes()), str(path))
        if sizes.dtype != np.uint16:
            raise UserError(f"{path} holds {sizes.dtype}: run the stage that writes {self.folder} again")
        if sizes.shape != (entry.samples, 2):
            raise UserError(
                f"{path} has sizes {sizes.shape}, {INDEX} says {entry.samples} samples: "
                f"run the stage that writes {self.folder} again"
            )
        return sizes

    def _locate(self, index: int) -> tuple[IndexedShard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: sample {index} of {len(self)} in split {self.split}")
        number = bisect.bisect_right(self._ends, index)
        return self._shard(number), int(index) - self._ends[number] + self._entries[number].samples

    def _open(self, number: int) -> IndexedShard:
        entry = self._entries[number]
        path = self.folder / entry.name
        shard = IndexedShard(path, self.folder / entry.index, entry.members)
        if len(shard) != entry.samples or path.stat().st_size != entry.bytes:
            found = f"{len(shard)} samples in {path.stat().st_size} bytes"
            listed = f"{entry.samples} in {entry.bytes}"
            raise UserError(f"{path} has {found}, {INDEX} says {listed}: run the stage that writes {self.folder} again")
        return shard

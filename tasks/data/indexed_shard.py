"""A shard that this project wrote, read through the index beside it, so that a sample is read without the others.

The index is an int64 array (samples, members, 2). For each member it holds the byte of the tar where the member begins,
and its number of bytes. Shards that others wrote have no index; `tasks.data.tar_shard` reads all their headers instead.
"""

import mmap
import os
import tarfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.data.npy_arrays import view_npy
from tasks.system.errors import UserError


class SpanRecorder:
    """Notes where the members of each sample lie while a tar is written."""

    def __init__(self) -> None:
        self.members: list[str] = []
        self._spans: list[list[tuple[int, int]]] = []

    def add(self, begin: int, end: int, members: Mapping[str, bytes]) -> None:
        """Note a sample that was written from byte `begin` to `end`, with its members in the order of their extensions.

        Raises ValueError if its members are not those of the samples before it. Also raises ValueError if its key is
        too long for a plain header: the tar then has another header, and the members do not lie where they should.
        """
        names = sorted(members)
        self.members = self.members or names
        if names != self.members:
            raise ValueError(f"a sample has the members {names}, those before it {self.members}")
        spans = []
        for name in names:
            # A member is a header of one block, and its bytes in whole blocks.
            spans.append((begin + tarfile.BLOCKSIZE, len(members[name])))
            begin += tarfile.BLOCKSIZE + -(-len(members[name]) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if begin != end:
            raise ValueError(f"a sample ends at byte {end} of its tar instead of {begin}: is its key too long?")
        self._spans.append(spans)

    def array(self) -> np.ndarray:
        """The index, int64 (samples, members, 2)."""
        return np.array(self._spans, np.int64).reshape(len(self._spans), len(self.members), 2)


class IndexedShard:
    """The samples of one shard, by their number in it. `members` are the extensions that every sample has."""

    def __init__(self, path: Path, index: Path, members: Sequence[str]) -> None:
        """Open the tar and map the index. Raises UserError if one is missing, or if the index does not fit `members`.

        The tar is read by `pread` and not mapped: a page fault on a network file system reads some hundred kilobytes at
        most and holds Python's lock, where `pread` asks for a whole sample at once.
        """
        self.path = path
        self._columns = {extension: column for column, extension in enumerate(members)}
        for needed in (path, index):
            if not os.path.isfile(needed) or not needed.stat().st_size:  # False too for a name that is too long
                raise UserError(f"{needed} is missing: run the stage that writes {path.parent} again")
        with open(index, "rb") as file:  # mapped, since a reader of samples here and there needs few of its pages
            self._spans = view_npy(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), str(index))
        if self._spans.dtype != np.int64 or self._spans.shape[1:] != (len(members), 2):
            raise UserError(f"{index} is no index of {len(members)} members: run the stage that writes it again")
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._bytes = os.fstat(self._file).st_size
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._spans)

    def read(self, sample: int, extensions: Sequence[str]) -> list[memoryview]:
        """The bytes of a sample's members, as read-only views of one read that goes from the first to the last.

        Raises UserError if there is no such member, or if the tar is shorter than its index says.
        """
        for extension in extensions:
            if extension not in self._columns:
                raise UserError(f"{self.path}: sample {sample} has no member .{extension}")
        spans = [self._spans[sample, self._columns[extension]].tolist() for extension in extensions]
        begin, end = min(start for start, _ in spans), max(start + size for start, size in spans)
        data = self._span(begin, end - begin)
        return [data[start - begin : start - begin + size] for start, size in spans]

    def key(self, sample: int) -> str:
        """The key of a sample, from the header before its first member."""
        header = bytes(self._span(int(self._spans[sample, 0, 0]) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE))
        try:
            name = tarfile.TarInfo.frombuf(header, "utf-8", "strict").name
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: no header at sample {sample} ({error}): run its stage again") from None
        return name.removesuffix(f".{next(iter(self._columns))}")

    def _span(self, start: int, size: int) -> memoryview:
        # Python reserves the memory for `size` bytes before it reads, so a damaged index is refused first.
        inside = 0 <= start <= start + size <= self._bytes
        data = os.pread(self._file, size, start) if inside else b""
        if not inside or len(data) != size:
            raise UserError(f"{self.path} does not fit its index: run the stage that writes them again")
        return memoryview(data)

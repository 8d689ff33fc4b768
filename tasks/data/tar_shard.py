"""Random access to a WebDataset shard that others wrote. Its headers are read once to find all members.

Nothing is extracted: a member is a span of the file. The file is open only while it is read, because a source may have
more shards than a process may open files. The whole tar is checked when it is indexed, because readers of WebDataset
streams pass over some damage in silence. A header that no longer parses ends the listing of `tarfile` as the end of the
archive does. A sample whose members do not lie together becomes two samples.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tasks.system.errors import UserError

END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}

Fields = dict[str, tuple[int, int]]
"""The first byte and the number of bytes of each member of a sample, by extension."""


class _BoundedReader:
    """A file as `tarfile` reads it, which gives no more than it has.

    A damaged header can ask for any number of bytes, and Python would reserve the memory for all of them at once.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size

    def tell(self) -> int:
        """The byte that is read next."""
        return self._file.tell()

    def seek(self, place: int) -> None:
        """Go to a byte. A place behind the end counts as the end, since the system takes no more than 63 bits."""
        self._file.seek(min(place, self._size))

    def read(self, size: int) -> bytes:
        """The next bytes, as many as there are up to `size`."""
        return self._file.read(min(size, self._size - self._file.tell()))


class TarShard:
    """The samples of one shard in file order. `keys[i]` is the key of sample i, `read` gives its members' bytes."""

    def __init__(self, path: Path) -> None:
        """Index the tar. Raises UserError, naming shard and member, if the tar is cut short, damaged or unsafe."""
        self.path = path
        with open(path, "rb") as file:
            samples = _index(file, path)
        self.keys = list(samples)
        self._fields = list(samples.values())

    def __len__(self) -> int:
        return len(self.keys)

    def extensions(self, sample: int) -> list[str]:
        """The extensions of a sample's members, in file order."""
        return list(self._fields[sample])

    def read(self, sample: int, extension: str) -> bytes:
        """The bytes of a sample's member. Raises UserError if there is no such member, or if the file has changed."""
        try:
            start, size = self._fields[sample][extension]
        except KeyError:
            raise UserError(f"{self.path}: sample {self.keys[sample]!r} has no member .{extension}") from None
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) != size:
            raise UserError(f"{self.path}: cut short since the stage began: write or fetch the shard again")
        return data


def _index(file: BinaryIO, path: Path) -> dict[str, Fields]:
    """The spans of every sample's members, by key and extension."""
    samples: dict[str, Fields] = {}
    current = None
    for member in _members(file, path):
        key, extension = _split_name(member, path)
        if key != current and key in samples:
            raise UserError(f"{path}: member {member.name!r} repeats a key of an earlier sample: write each key once")
        current = key
        fields = samples.setdefault(key, {})
        if extension in fields:
            raise UserError(f"{path}: member {member.name!r} is there twice: write each member once")
        fields[extension] = (member.offset_data, member.size)
    return samples


def _members(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular members of a tar. Folders are passed over.

    Raises UserError, after the last good member, unless the tar is whole from its first header to its end mark.
    """
    name = "its start"
    try:
        with tarfile.open(fileobj=_BoundedReader(file), mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    raise UserError(f"{path}: member {member.name!r} has an impossible size: write the shard again")
                name = f"member {member.name!r}"
                if not member.isdir():
                    yield _regular(member, path)
            _check_end(file, archive.offset, path, name)
    except UserError:
        raise
    except Exception as error:  # damaged headers make `tarfile` raise errors of many kinds, IndexError among them
        raise UserError(f"{path}: no whole tar after {name} ({error}): write or fetch the shard again") from None


def _regular(member: tarfile.TarInfo, path: Path) -> tarfile.TarInfo:
    """`member`, checked. Raises UserError if it is a link, a device or another kind whose bytes are not in the tar."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        kind = KINDS.get(member.type, "no regular file")
        raise UserError(f"{path}: member {member.name!r} is {kind}: a shard may hold regular files only")
    return member


def _check_end(file: BinaryIO, offset: int, path: Path, name: str) -> None:
    """Raises UserError unless two zero blocks end the tar, and nothing but zeros follows.

    Otherwise the tar was cut, a header is damaged, or a second tar follows.
    """
    file.seek(offset)
    if file.read(END_OF_ARCHIVE) != bytes(END_OF_ARCHIVE):
        raise UserError(f"{path}: the tar is cut short or damaged after {name}: write or fetch the shard again")
    while block := file.read(1 << 20):
        if np.frombuffer(block, np.uint8).any():
            raise UserError(f"{path}: there are bytes behind the end of the tar, after {name}: write the shard again")


def _split_name(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """The key and extension of a member. As in WebDataset, its name is split at the first dot after the last slash."""
    name = member.name.removeprefix("./")
    folders = name.split("/")[:-1]
    if name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{path}: member {member.name!r} points outside the shard: name members relative to it")
    stem, _, extension = name.rpartition("/")[2].partition(".")
    if not stem or not extension:
        raise UserError(f"{path}: member {member.name!r} is not named <key>.<extension>: rename or remove it")
    return "/".join([*folders, stem]), extension.lower()

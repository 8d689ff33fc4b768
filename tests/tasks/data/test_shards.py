"""Claims about shards: what they hold, and that nothing damaged or unsafe is read."""

import gc
import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from tasks.data import shards
from tasks.data.shards import Sample, ShardReader, describe, write_index, write_split
from tasks.data.tar_shard import TarShard
from tasks.system.errors import UserError

Member = tuple[str, bytes]


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """Samples of random bytes, of lengths around a tar's block of 512."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, 511, 512, 513, 1500], size=count)
    return [
        Sample(f"{i:09d}", {"png": rng.bytes(length), "json": describe(3, 4, f"a photo of {i} cats")})
        for i, length in enumerate(lengths)
    ]


def write_tar(path: Path, members: list[tarfile.TarInfo | Member], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar written by Python's own writer; a bare (name, bytes) becomes a regular member."""
    with tarfile.open(path, "w", format=tar_format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    """A member without bytes of its own: a link, a device or a pipe."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def contents(shard: TarShard) -> dict[str, dict[str, bytes]]:
    """Everything that a shard holds."""
    return {
        key: {extension: bytes(shard.read(sample, extension)) for extension in shard.extensions(sample)}
        for sample, key in enumerate(shard.keys)
    }


def test_same_samples_give_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_split(tmp_path / name, "train", make_samples(5), samples_per_shard=3)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    for path in (tmp_path / "a").glob("*.tar"):
        with tarfile.open(path) as archive:
            assert {(info.mtime, info.uid, info.gid, info.mode) for info in archive} == {(0, 0, 0, 0o444)}


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    samples = make_samples(7)
    write_split(tmp_path, "train", samples, samples_per_shard=3)
    paths = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    read = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in samples]
    assert all(got["png"] == want.members["png"] for got, want in zip(read, samples, strict=True))
    assert [json.loads(sample["json"])["prompt"] for sample in read] == [f"a photo of {i} cats" for i in range(7)]


def test_index_lists_count_bytes_and_sha256_of_every_shard(tmp_path: Path) -> None:
    entries = write_split(tmp_path, "train", make_samples(7), samples_per_shard=3)
    write_index(tmp_path, {"train": entries, "heldout": []})
    listed = json.loads((tmp_path / "index.json").read_text())["splits"]["train"]
    assert [(shard["name"], shard["samples"]) for shard in listed] == [
        ("train-00000.tar", 3),
        ("train-00001.tar", 3),
        ("train-00002.tar", 1),
    ]
    for shard in listed:
        data = (tmp_path / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_random_access_gives_each_sample_its_own_bytes(tmp_path: Path) -> None:
    samples = make_samples(20)
    write_index(tmp_path, {"train": write_split(tmp_path, "train", samples, samples_per_shard=6)})
    reader = ShardReader(tmp_path, "train")
    assert len(reader) == 20
    for index in np.random.default_rng(1).permutation(20):
        assert reader.key(index) == samples[index].key
        assert bytes(reader.read(index, "png")) == samples[index].members["png"]
    assert reader.captions == [f"a photo of {i} cats" for i in range(20)]


@pytest.mark.parametrize("index", [-1, 4])
def test_sample_outside_the_split_is_an_index_error(tmp_path: Path, index: int) -> None:
    write_index(tmp_path, {"train": write_split(tmp_path, "train", make_samples(4), samples_per_shard=2)})
    with pytest.raises(IndexError, match=f"sample {index} of 4"):
        ShardReader(tmp_path, "train").read(index, "png")


def test_unknown_split_and_unknown_member_are_named(tmp_path: Path) -> None:
    write_index(tmp_path, {"train": write_split(tmp_path, "train", make_samples(1), samples_per_shard=2)})
    with pytest.raises(UserError, match=r"no split 'test': it lists \['train'\]"):
        ShardReader(tmp_path, "test")
    with pytest.raises(UserError, match=r"train-00000.tar: sample 0 has no member .npy"):
        ShardReader(tmp_path, "train").read(0, "npy")


def test_shard_that_differs_from_its_index_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"train": write_split(tmp_path, "train", make_samples(3), samples_per_shard=3)})
    write_split(tmp_path, "train", make_samples(2), samples_per_shard=3)
    with pytest.raises(UserError, match=r"train-00000.tar has 2 samples .* index.json says 3"):
        ShardReader(tmp_path, "train").key(0)
    for name in ("train-00000.index.npy", "train-00000.tar"):
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"{name} is missing"):
            ShardReader(tmp_path, "train").key(0)


def test_shard_that_does_not_fit_its_places_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"train": write_split(tmp_path, "train", make_samples(3), samples_per_shard=3)})
    places = np.load(tmp_path / "train-00000.index.npy")
    np.save(tmp_path / "train-00000.index.npy", places + 10**6)
    for read in (lambda reader: reader.read(0, "png"), lambda reader: reader.key(0)):
        with pytest.raises(UserError, match=r"train-00000.tar does not fit its index"):
            read(ShardReader(tmp_path, "train"))
    np.save(tmp_path / "train-00000.index.npy", places + 1)
    with pytest.raises(UserError, match=r"train-00000.tar: no header at sample 0"):
        ShardReader(tmp_path, "train").key(0)
    np.save(tmp_path / "train-00000.index.npy", places[:, :1])
    with pytest.raises(UserError, match=r"train-00000.index.npy is no index of 2 members"):
        ShardReader(tmp_path, "train").key(0)


def test_places_of_members_are_those_that_python_finds(tmp_path: Path) -> None:
    samples = [replace(sample, key=f"{'deep/' * 15}{sample.key}") for sample in make_samples(9)]
    (entry,) = write_split(tmp_path, "train", samples, samples_per_shard=9)
    places = np.load(tmp_path / entry.index)
    with tarfile.open(tmp_path / entry.name) as archive:
        found = {member.name: [member.offset_data, member.size] for member in archive}
    for sample, own in zip(samples, places.tolist(), strict=True):
        assert [found[f"{sample.key}.{extension}"] for extension in entry.members] == own


def test_sample_of_other_members_or_of_too_long_a_key_is_not_written(tmp_path: Path) -> None:
    samples = make_samples(2)
    for wrong in (replace(samples[1], members={"png": b""}), replace(samples[1], key="x" * 200)):
        with pytest.raises(ValueError, match=r"members \['png'\]|too long"):
            write_split(tmp_path, "train", [samples[0], wrong], samples_per_shard=2)


def test_shards_of_others_are_open_only_while_they_are_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", [("a.png", b"a" * 700), ("a.txt", b"cat"), ("b.png", b"b")])
    gc.collect()  # readers of other tests are in cycles, and have files open
    before = len(list(Path("/proc/self/fd").iterdir()))
    many = [TarShard(path) for _ in range(20)]
    assert {shard.read(0, "txt") for shard in many} == {b"cat"}
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with open(path, "r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match=r"shard\.tar: cut short since"):
        many[0].read(0, "png")


def bytes_read() -> int:
    """Bytes that this process has read by system calls."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_reading_a_sample_reads_neither_the_shard_nor_its_headers(tmp_path: Path) -> None:
    samples = [Sample(f"{i:09d}", {"a": b"x" * 9000, "json": describe(1, 1, f"{i}")}) for i in range(2000)]
    write_index(tmp_path, {"train": write_split(tmp_path, "train", samples, samples_per_shard=2000)})
    path = tmp_path / "train-00000.tar"
    reader = ShardReader(tmp_path, "train")
    before = bytes_read()
    sample = reader.read(1234, "a")
    assert bytes(sample) == samples[1234].members["a"]
    assert 9000 <= bytes_read() - before < 9000 + 512, "one member, and no header"
    assert reader.key(1234) == "000001234"
    assert bytes_read() - before < 9000 + 1536, "one header more"
    assert path.stat().st_size > 20_000_000


def test_members_of_a_sample_come_by_one_read_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"a": b"x" * 700, "b": b"y" * 3000, "c": b"", "json": describe(1, 1, "z")}
    write_index(tmp_path, {"train": write_split(tmp_path, "train", [Sample("one", members)], 1)})
    reader, pread, sizes = ShardReader(tmp_path, "train"), os.pread, []

    def noted_pread(file: int, size: int, start: int) -> bytes:
        sizes.append(size)
        return pread(file, size, start)

    monkeypatch.setattr(os, "pread", noted_pread)
    for extensions in (("a", "b"), ("b", "a"), ("c", "json"), ("a", "json", "b", "c")):
        read = reader.read_members(0, extensions)
        assert [bytes(view) for view in read] == [members[extension] for extension in extensions]
        assert all(view.readonly for view in read)
    assert sizes[:2] == [2 * 512 + 3000 + 512, 2 * 512 + 3000 + 512] and len(sizes) == 4


def test_many_shards_are_read_with_few_of_them_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 3)
    samples = make_samples(40)
    write_index(tmp_path, {"train": write_split(tmp_path, "train", samples, samples_per_shard=2)})
    reader, opened = ShardReader(tmp_path, "train"), len(list(Path("/proc/self/fd").iterdir()))
    views = [reader.read(index, "png") for index in range(0, 40, 2)]
    assert [bytes(view) for view in views] == [sample.members["png"] for sample in samples[::2]], (
        "views outlive closing"
    )
    del views
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 6


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../b.txt", b"x"), "points outside"),
        (("a/../../b.txt", b"x"), "points outside"),
        (("/tmp/b.txt", b"x"), "points outside"),
        (special("b.txt", tarfile.SYMTYPE), "a symbolic link"),
        (special("b.txt", tarfile.LNKTYPE), "a hard link"),
        (special("b.txt", tarfile.CHRTYPE), "a device"),
        (special("b.txt", tarfile.BLKTYPE), "a device"),
        (special("b.txt", tarfile.FIFOTYPE), "a pipe"),
        (special("b.txt", tarfile.GNUTYPE_SPARSE), "no regular file"),
        (("a.txt", b"x"), "is there twice"),
        (("b", b"x"), "is not named"),
        ((".txt", b"x"), "is not named"),
    ],
)
def test_unsafe_or_ambiguous_member_is_refused_by_name(
    tmp_path: Path, member: tarfile.TarInfo | Member, reason: str
) -> None:
    path = write_tar(tmp_path / "shard.tar", [("a.txt", b"a"), member])
    name = member.name if isinstance(member, tarfile.TarInfo) else member[0]
    with pytest.raises(UserError, match=reason) as caught:
        TarShard(path)
    assert str(path) in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sample_whose_members_lie_apart_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", [("a.png", b"a"), ("b.png", b"b"), ("a.txt", b"a")])
    with pytest.raises(UserError, match=r"shard.tar: member 'a.txt' repeats a key"):
        TarShard(path)


def test_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", [("a.txt", b"a"), ("b.txt", b"b")])
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
    checksum = 256 + sum(data[1024 : 1024 + 148]) + sum(data[1024 + 156 : 1024 + 512])
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % checksum
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"'b\.txt' has an impossible size"):
        TarShard(path)


def test_shard_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", [("a.png", b"a" * 700), ("a.txt", b"cat"), ("b.png", b"")]).read_bytes()
    end = 512 + 1024 + 512 + 512 + 512 + 1024
    path = tmp_path / "cut.tar"
    for length in [*range(0, end, 61), end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.tar: "):
            TarShard(path)
    path.write_bytes(whole[:end])
    assert contents(TarShard(path)) == contents(TarShard(tmp_path / "whole.tar"))


def test_flipped_bit_in_a_header_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", [("a.png", b"abc"), ("a.txt", b"cat"), ("b.png", b"xyz")])
    data, intact = bytearray(path.read_bytes()), contents(TarShard(path))
    refused = 0
    for header in (0, 1024, 2048):
        for place in range(header, header + 512, 3):
            data[place] ^= 1 << (place % 8)
            path.write_bytes(data)
            data[place] ^= 1 << (place % 8)
            try:
                assert contents(TarShard(path)) == intact
            except UserError:
                refused += 1
    # The checksum's own closing NUL and space are the only bytes that no checksum covers.
    assert refused >= 3 * (512 // 3 - 2)


def test_bytes_behind_the_end_are_refused(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", [("a.txt", b"a")]).read_bytes()
    second = write_tar(tmp_path / "b.tar", [("b.txt", b"b")]).read_bytes()
    (tmp_path / "both.tar").write_bytes(first + second)
    with pytest.raises(UserError, match=r"both.tar: there are bytes behind the end"):
        TarShard(tmp_path / "both.tar")


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_folders_of_other_writers_are_read(tmp_path: Path, tar_format: int) -> None:
    folder = "./" + "deep/" * 60
    directory = special(folder, tarfile.DIRTYPE)
    members = [directory, (f"{folder}cat.left.PNG", b"1"), (f"{folder}cat.txt", b"2")]
    path = write_tar(tmp_path / "shard.tar", members, tar_format)
    assert contents(TarShard(path)) == {"deep/" * 60 + "cat": {"left.png": b"1", "txt": b"2"}}

"""Any damage to the project's own shards is read or refused in one line.

Stages compare their inputs with manifests first. A reader must hold all the same where a file rots under it, or where
somebody reads a folder that has no manifest.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="hypothesis is missing: pip install -e '.[dev]' -c constraints.txt")

from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save_file
from torch import zeros

from tasks.data.encoded_samples import NULL_TEXT, EncodedDataset
from tasks.data.npy_arrays import to_npy, view_npy
from tasks.data.picture_dataset import PictureDataset
from tasks.data.picture_files import encode_png
from tasks.data.shards import INDEX, Sample, describe, write_index, write_split
from tasks.system.files import read_json
from tests.fuzz.damaged_bytes import changed, damaged
from tests.fuzz.damaged_json import damaged_json
from tests.fuzz.outcomes import outcome

TAR, SPANS, SIZES = "train-00000.tar", "train-00000.index.npy", "train-00000.sizes.npy"
NPY_TOKENS = (
    b"'<f8'",
    b"'|O'",
    b"'<U4'",
    b"'>i8'",
    b"[('a', '<i8')]",
    b"'V0'",
    b"True",
    b"None",
    b"(-1, 2, 2)",
    b"(-1,)",
    b"()",
    b"(0, 2, 2)",
    b"(9223372036854775807, 2, 2)",
    b"(" + b"9" * 100 + b",)",
    b"(2L, 2, 2)",
    b"'''",
    b"\\",
    b"(" * 300,
    b"-" * 3_000,
    b"\n  \n x",
    b", 1: 2",
    b", []: 2",
    b"{",
    b"#",
)
"""What is inserted into the header of a .npy file, which NumPy reads as Python."""


def picture_sample(number: int) -> Sample:
    """A picture with two captions, whose height and width differ from one sample to the next."""
    height, width = (8, 16) if number % 2 else (16, 8)
    pixels = np.full((height, width, 3), 40 * number, np.uint8)
    record = describe(height, width, f"a cat {number}", captions=[[f"a cat {number}", 0.5], ["a pet", 0.5]])
    return Sample(f"{number:09d}", {"png": encode_png(pixels), "json": record}, (height, width))


def encoded_sample(number: int) -> Sample:
    """A latent with two encoded captions."""
    arrays = {
        "latent.npy": np.full((4, 2, 2), number, np.float16),
        "text.npy": np.ones((5, 6), np.float16),
        "text_lengths.npy": np.array([2, 3], np.int32),
        "text_weights.npy": np.array([0.25, 0.75]),
    }
    members = {name: to_npy(array) for name, array in arrays.items()}
    return Sample(f"{number:09d}", members | {"json": describe(16, 16, f"a cat {number}")})


def written(folder: Path, sample_of: Any) -> Path:
    """A folder of one shard of three samples, with the embedding of the empty prompt."""
    folder.mkdir()
    write_index(folder, {"train": write_split(folder, "train", map(sample_of, range(3)), 3)})
    save_file({"text_TE": zeros(1, 6).half()}, folder / NULL_TEXT)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("shards") / "pictures", picture_sample)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("shards") / "encoded", encoded_sample)


def read_pictures(folder: Path) -> list[tuple[str, str, dict[str, float] | None, list[int]]]:
    """Key, captions and pixels of every picture of a folder, as stages read them."""
    dataset = PictureDataset(folder, "train")
    assert all(isinstance(caption, str) for caption in dataset.captions)
    dataset.sizes()
    everything = np.concatenate([*dataset.size_groups, np.zeros(0, int)])
    for batch in dataset.batches(everything, 2):
        assert dataset.pictures(batch).dtype == np.uint8
    return [
        (dataset.key(i), dataset.caption(i), dataset.captions_with_weights(i), dataset.squares([i], 8).ravel().tolist())
        for i in range(len(dataset))
    ]


def read_encoded(folder: Path) -> list[Any]:
    """Every batch of a folder, as training reads it."""
    dataset = EncodedDataset(folder, "train")
    found = []
    for group in dataset.sharded_groups:
        for index in group.in_epoch(0, 0, 0, np.arange(len(group))):
            for draw in (0.0, 0.3, 0.999):
                batch = dataset.batch([index], np.array([draw]))
                found.append((batch.latents_BCHW.tolist(), batch.text_BTE.tolist(), batch.mask_BT.tolist()))
    return [dataset.null_text.tolist(), dataset.longest_text, found]


def replaced(folder: Path, name: str, data: bytes) -> Iterator[None]:
    """The folder with other bytes in one file, until the generator is closed."""
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(data)
    yield
    path.write_bytes(whole)


def result_with(folder: Path, name: str, data: bytes, read: Any) -> Any:
    """The outcome of reading the folder with other bytes in one file."""
    change = replaced(folder, name, data)
    next(change)
    try:
        return outcome(lambda: read(folder))
    finally:
        next(change, None)


def bytes_of(kind: str, name: str) -> bytes:
    """The bytes of a file of a folder of pictures or of encodings, whose samples are the same in every run."""
    with tempfile.TemporaryDirectory() as place:
        sample_of = {"pictures": picture_sample, "encoded": encoded_sample}[kind]
        return (written(Path(place) / "shards", sample_of) / name).read_bytes()


def damaged_npy(data: bytes) -> SearchStrategy[bytes]:
    """A .npy file with damage to its header, whose length stays right, or with any damage."""
    header, rest = data[10:128], data[128:]
    tokens = changed(header, 0, len(header), NPY_TOKENS)
    words = st.sampled_from([(b"'<i8'", 0), (b"'<u2'", 0), (b"False", 0), (b"(3, 2, 2)", 0), (b"(3, 2)", 0)])
    swapped = st.tuples(words, st.sampled_from(NPY_TOKENS)).map(lambda pair: header.replace(pair[0][0], pair[1]))
    with_length = (tokens | swapped).map(lambda text: data[:8] + len(text).to_bytes(2, "little") + text + rest)
    return st.one_of(with_length, damaged(data))


def damaged_numbers(data: bytes) -> SearchStrategy[bytes]:
    """A .npy file with one or two other 64-bit numbers."""
    odd = st.sampled_from((-1, 0, 1, 511, 512, 2**40, 2**62, 2**63 - 1, -(2**63)))
    change = st.tuples(st.integers(0, (len(data) - 128) // 8 - 1), odd)

    def apply(changes: list[tuple[int, int]]) -> bytes:
        numbers = np.frombuffer(data[128:], np.int64).copy()
        for place, value in changes:
            numbers[place] = value
        return data[:128] + numbers.tobytes()

    return st.lists(change, min_size=1, max_size=2).map(apply)


def index_of(kind: str) -> Any:
    """The value of `index.json` of a folder."""
    return json.loads(bytes_of(kind, INDEX))


def test_undamaged_shards_are_read(pictures: Path, encoded: Path) -> None:
    assert [row[1] for row in read_pictures(pictures)] == ["a cat 0", "a cat 1", "a cat 2"]
    assert read_json(pictures / INDEX) == index_of("pictures")
    assert len(read_encoded(encoded)[2]) == 9


@given(data=damaged_json(index_of("pictures")))
@example(data=b"[]")
@example(data=b'{"splits": {"train": [{}]}}')
@example(data=b"9" * 5_000)
@example(data=b"[" * 20_000)
def test_any_damage_to_the_index_of_shards_is_read_or_refused(pictures: Path, data: bytes) -> None:
    result_with(pictures, INDEX, data, read_pictures)


@given(data=damaged_npy(bytes_of("pictures", SPANS)) | damaged_numbers(bytes_of("pictures", SPANS)))
@example(data=bytes_of("pictures", SPANS)[:-8] + (2**62).to_bytes(8, "little"))
def test_any_damage_to_the_places_of_members_is_read_or_refused(pictures: Path, data: bytes) -> None:
    result_with(pictures, SPANS, data, read_pictures)


@given(data=damaged_npy(bytes_of("pictures", SIZES)))
def test_any_damage_to_the_sizes_of_samples_is_read_or_refused(pictures: Path, data: bytes) -> None:
    result_with(pictures, SIZES, data, read_pictures)


@given(data=damaged(bytes_of("pictures", TAR)))
def test_any_damage_to_a_shard_of_pictures_is_read_or_refused(pictures: Path, data: bytes) -> None:
    result_with(pictures, TAR, data, read_pictures)


@given(record=damaged_json({"height": 8, "width": 16, "prompt": "a cat", "captions": [["a cat", 0.5], ["a pet", 0.5]]}))
@example(record=b"5")
@example(record=b'{"prompt": "\\ud800"}')
@example(record=b'{"prompt": "a cat", "captions": 3}')
def test_any_json_in_a_shard_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, record: bytes) -> None:
    folder = tmp_path_factory.mktemp("record")
    sample = Sample("0", {"png": picture_sample(1).members["png"], "json": record}, (8, 16))
    write_index(folder, {"train": write_split(folder, "train", [sample], 1)})
    outcome(lambda: read_pictures(folder))


@given(data=damaged(bytes_of("encoded", TAR)))
def test_any_damage_to_a_shard_of_encodings_is_read_or_refused(encoded: Path, data: bytes) -> None:
    result_with(encoded, TAR, data, read_encoded)


LENGTHS = st.lists(st.integers(-3, 9), max_size=3).map(lambda numbers: np.array(numbers, np.int32))
WEIGHTS = st.lists(st.sampled_from((0.0, 0.5, 1.0, -1.0, np.nan, np.inf)), max_size=3).map(np.array)
ARRAYS = st.sampled_from(
    [
        np.zeros(shape, dtype)
        for shape in ((), (3,), (2, 3), (0, 6), (4, 2, 2), (0, 0, 0), (1, 2, 3, 4))
        for dtype in ("<f2", ">f2", "<f4", "<i4", "?", "<U2", "<c8", "<M8[s]", "<f8", [("a", "<f2")])
    ]
)


@given(
    arrays=st.fixed_dictionaries(
        {},
        optional={
            "latent": ARRAYS,
            "text": ARRAYS,
            "text_lengths": LENGTHS | ARRAYS,
            "text_weights": WEIGHTS | ARRAYS,
        },
    )
)
@example(arrays={"text_lengths": np.array([9, 9], np.int32)})
@example(arrays={"text": np.zeros((2, 3), "<U2")})
@example(arrays={"latent": np.zeros(3, np.float16)})
def test_any_arrays_in_a_shard_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    members = encoded_sample(0).members | {f"{name}.npy": to_npy(array) for name, array in arrays.items()}
    folder = tmp_path_factory.mktemp("arrays") / "shards"
    written(folder, lambda number: Sample(f"{number}", members))
    outcome(lambda: read_encoded(folder))


@given(data=damaged(bytes_of("encoded", NULL_TEXT)))
def test_any_damage_to_the_empty_prompts_embedding_is_read_or_refused(encoded: Path, data: bytes) -> None:
    result_with(encoded, NULL_TEXT, data, read_encoded)


ARRAY = to_npy(np.arange(12, dtype=np.int64).reshape(3, 2, 2))


@given(data=damaged_npy(ARRAY))
@example(data=ARRAY.replace(b"(3, 2, 2), }", b"(3, 2, 2),1:2}"))
@example(data=ARRAY.replace(b"(3, 2, 2), }", b"(-3, 2, 2), }"))
@example(data=ARRAY.replace(b"(3, 2, 2), }", b"(3, '''2, 2), }"))
@example(data=ARRAY[:4])
def test_any_damage_to_an_array_is_read_or_refused(data: bytes) -> None:
    outcome(lambda: view_npy(memoryview(data), "here"))

"""Any damage to files of weights, and to what lies beside them, is read or refused in one line that names the file.

The readers of `model` know no UserError. They raise ValueError, which the stages turn into one.
"""

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis", reason="hypothesis is missing: pip install -e '.[dev]' -c constraints.txt")

from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save

from model.checkpoint import CONFIG, WEIGHTS, load_network, save_network
from model.network import Sana
from model.weights.fit_to_network import load_weights
from model.weights.weight_files import CONFIG_CLASS, FILES, INDEX
from model.weights.weight_names import to_diffusers
from tasks.system.errors import UserError
from tests.fuzz.damaged_bytes import changed, damaged
from tests.fuzz.damaged_json import damaged_json
from tests.fuzz.outcomes import outcome
from tests.helpers.small_networks import small_network

NETWORK = small_network(1)
OURS = save(NETWORK.state_dict())
THEIRS = save(to_diffusers(NETWORK.state_dict()))
OWN_CONFIG = {"linear_head_dim": 8, "cross_heads": 2}
THEIR_CONFIG = {"_class_name": CONFIG_CLASS, "attention_head_dim": 8, "num_cross_attention_heads": 2}
BLOCK = "blocks.0.mlp.point_conv.conv.weight"
LENGTH = 8
"""Bytes before the header of a safetensors file, which say how long it is."""


def header_of(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:LENGTH])
    return json.loads(data[LENGTH : LENGTH + size])


def with_header(data: bytes, header: bytes) -> bytes:
    """A safetensors file with another header, whose length is right."""
    (size,) = struct.unpack("<Q", data[:LENGTH])
    return struct.pack("<Q", len(header)) + header + data[LENGTH + size :]


def renamed(data: bytes, name: str, other: str) -> bytes:
    """A safetensors file in which a tensor has another name."""
    header = header_of(data)
    return with_header(data, json.dumps({other if key == name else key: at for key, at in header.items()}).encode())


def shaped(data: bytes, name: str, shape: list[int]) -> bytes:
    """A safetensors file in which a tensor has another shape."""
    header = header_of(data)
    header[name]["shape"] = shape
    return with_header(data, json.dumps(header).encode())


def damaged_safetensors(data: bytes) -> SearchStrategy[bytes]:
    """A safetensors file with damage to its header, whose length stays right, or with any damage."""
    header = header_of(data)
    names = [name for name in header if name != "__metadata__"]
    some = st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)
    kinds = st.sampled_from(("F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "F4", "I32", "U64", "BOOL", "C64", "X"))
    sizes = st.lists(st.sampled_from((-1, 0, 1, 2, 3, 16, 96, 2**31, 2**62, 2**64)), max_size=5)

    def of_shapes(drawn: tuple[list[str], list[int], str | None]) -> bytes:
        names, shape, kind = drawn
        entries = {name: header[name] | {"shape": shape} | ({"dtype": kind} if kind else {}) for name in names}
        return with_header(data, json.dumps(header | entries).encode())

    return st.one_of(
        damaged_json(header).map(lambda text: with_header(data, text)),
        st.tuples(some, sizes, st.none() | kinds).map(of_shapes),
        changed(data, 0, 64),
        damaged(data),
    )


def reading(files: dict[str, bytes], read: Callable[[Path], Sana]) -> None:
    """Read a folder of these files: a network of numbers in float32, or one line that names the folder."""
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            (Path(place) / name).write_bytes(data)

        def named(path: Path) -> Sana:
            try:
                return read(path)
            except ValueError as error:
                assert str(error).startswith(place), f"it does not name the file: {str(error)[:300]}"
                raise UserError(str(error)) from None

        network = outcome(lambda: named(Path(place)))
        assert network is None or {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}


def published(name: str = "") -> Callable[[Path], Sana]:
    """A reader of published weights in a folder, or in a file of it."""
    return lambda path: load_weights(path / name, "diffusers", heads=(8, 2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of our own checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_network(NETWORK, folder)
    return {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def checkpoint_config() -> dict[str, Any]:
    """The configuration of our own checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        save_network(NETWORK, Path(place))
        return json.loads((Path(place) / CONFIG).read_text())


def test_undamaged_weights_are_read(checkpoint: dict[str, bytes]) -> None:
    whole = NETWORK.state_dict()
    with tempfile.TemporaryDirectory() as place:
        for data in (OURS, THEIRS):
            (Path(place) / "one.safetensors").write_bytes(data)
            read = published("one.safetensors")(Path(place)).state_dict()
            assert all(torch.equal(read[name], whole[name]) for name in whole)
        for name, data in checkpoint.items():
            (Path(place) / name).write_bytes(data)
        read = load_network(Path(place)).state_dict()
        assert all(torch.equal(read[name], whole[name]) for name in whole)


@given(data=st.sampled_from((OURS, THEIRS)).flatmap(damaged_safetensors))
@example(data=renamed(OURS, BLOCK, BLOCK.replace(".0.", ".99999999.")))
@example(data=renamed(OURS, BLOCK, BLOCK.replace(".0.", ".x.")))
@example(data=shaped(OURS, BLOCK, [16 * 40]))
@example(data=shaped(OURS, "y_embedder.y_proj.fc1.weight", [16 * 6]))
@example(data=shaped(THEIRS, "transformer_blocks.0.attn1.to_q.weight", [2, 128]))
def test_any_damage_to_published_weights_is_read_or_refused(data: bytes) -> None:
    reading({"one.safetensors": data}, published("one.safetensors"))


@given(config=damaged_json(OWN_CONFIG) | damaged_json(THEIR_CONFIG))
def test_any_damage_to_the_configuration_beside_weights_is_read_or_refused(config: bytes) -> None:
    reading({FILES[0]: OURS, CONFIG: config}, published())


@given(index=damaged_json({"weight_map": {name: FILES[0] for name in ("proj_out.weight", "proj_out.bias")}}))
def test_any_damage_to_an_index_of_weights_is_read_or_refused(index: bytes) -> None:
    reading({FILES[0]: THEIRS, INDEX: index}, published())


@given(config=damaged_json(checkpoint_config()))
@example(config=json.dumps(checkpoint_config() | {"depth": 10**8}).encode())
@example(config=json.dumps(checkpoint_config() | {"hidden_size": 2**62}).encode())
@example(config=json.dumps(checkpoint_config() | {"linear_head_dim": 0}).encode())
def test_any_damage_to_a_checkpoints_configuration_is_read_or_refused(
    checkpoint: dict[str, bytes], config: bytes
) -> None:
    reading(checkpoint | {CONFIG: config}, load_network)


@given(data=damaged_safetensors(OURS))
def test_any_damage_to_a_checkpoints_weights_is_read_or_refused(checkpoint: dict[str, bytes], data: bytes) -> None:
    reading(checkpoint | {WEIGHTS: data}, load_network)

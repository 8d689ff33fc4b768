"""Our own checkpoint of a network: a folder with `config.json` and `model.safetensors`."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.finite_numbers import check_finite_weights
from model.network import NetworkConfig, Sana
from model.weights.folder_contents import contents_of, shortened

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHOWN_TENSORS = 8
"""Tensors that a message names. A wrapper that renames all of them would make a line of a thousand names."""


def save_network(network: Sana, folder: Path) -> None:
    """Write configuration and weights into an existing folder. The same network gives the same bytes."""
    config = json.dumps(dataclasses.asdict(network.config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    # safetensors stores contiguous tensors alone.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def load_network(folder: Path, device: str = "cpu") -> Sana:
    """The network of a checkpoint folder.

    Raises ValueError that names the folder if a file is missing, if configuration and weights do not fit, or if a
    weight is not finite.
    """
    folder = Path(folder)
    network = load_shapes(folder).to_empty(device=device)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors raises errors of many kinds for what torch has no numbers of
        raise _misfit(folder, error) from None
    check_finite_weights(network.state_dict(), folder / WEIGHTS)
    return network


def load_shapes(folder: Path) -> Sana:
    """The network of a checkpoint folder on the meta device: shapes without numbers.

    Raises ValueError that names the folder if a file is missing, or if names of configuration and weights do not fit.
    """
    folder = Path(folder)
    try:
        config = NetworkConfig(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        with safe_open(folder / WEIGHTS, "pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        if type(config.depth) is not int or config.depth > len(stored):  # or a damaged number would build for ever
            raise ValueError(f"depth is {config.depth!r}, and there are {len(stored)} tensors")
        with torch.device("meta"):
            network = Sana(config)
    except FileNotFoundError:
        found = contents_of(folder)
        raise ValueError(f"{folder} is no checkpoint: it needs {CONFIG} and {WEIGHTS}, and holds {found}") from None
    except Exception as error:  # numbers that fit no network raise KeyError, ZeroDivisionError and others
        raise _misfit(folder, error) from None
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if different := sorted(stored.keys() ^ wanted.keys()):
        raise _misfit(folder, f"{shortened(different, SHOWN_TENSORS)} in one of {CONFIG} and {WEIGHTS} alone")
    for name, shape in stored.items():  # before memory is taken for tensors of the shapes that are wanted
        if shape != wanted[name]:
            raise _misfit(folder, f"{name} has the shape {list(shape)}, not {list(wanted[name])}")
    return network


def stored_rows(folder: Path, name: str, shape: torch.Size, first: int, rows: Tensor) -> None:
    """Fill `rows` with those of the tensor `name` of a checkpoint, from row `first` on. No other rows are read.

    Raises ValueError that names the folder if the stored tensor does not have the `shape`.
    """
    # The file is opened for each tensor, because its pages count as this process's memory while it is mapped.
    with safe_open(folder / WEIGHTS, "pt") as file:
        stored = file.get_slice(name)
        if tuple(stored.get_shape()) != tuple(shape):
            raise _misfit(folder, f"{name} has the shape {stored.get_shape()}, not {list(shape)}")
        if len(rows):
            rows.copy_(stored[first : first + len(rows)])


def _misfit(folder: Path, reason: Exception | str) -> ValueError:
    return ValueError(f"{folder} does not fit the network: {' '.join(str(reason).split())}")

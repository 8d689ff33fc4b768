"""Weights from disk under our names: of a published `.pth`, a safetensors file, a diffusers folder, our checkpoint."""

import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.numerics import CheckpointKey
from model.weights.folder_contents import contents_of, shortened
from model.weights.weight_names import LEFT_OUT, from_diffusers, is_diffusers
from model.weights.wrapper_names import without_wrappers

FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX = "diffusion_pytorch_model.safetensors.index.json"
TRANSFORMER = "transformer"  # the folder of the network in the folder of a pipeline
CONFIG = "config.json"
CONFIG_CLASS = "SanaTransformer2DModel"
INTERPOLATION = "interpolation_scale"  # in diffusers' configuration; not null if a positional embedding is added
POSITION = "pos_embed"
SHOWN_KEYS = 8
"""Keys of a checkpoint that a message names."""
ADDS_POSITION = (
    "these are weights of a network that adds a positional embedding, which this one does not have: "
    "take weights for pictures of 512 or 1024 pixels"
)


def read_weights(path: Path, which: CheckpointKey = "state_dict") -> dict[str, Tensor]:
    """The network's tensors under our names, on the CPU, in the precision that they are stored in.

    `which` chooses between the weights of a published checkpoint and their average. If the names of wrappers are in
    front of the tensors' names, they are taken off, and a line is printed. Raises ValueError that names the file if it
    is missing or damaged, if it holds anything but tensors, or if its network adds a positional embedding.
    """
    path = Path(path)
    if path.is_dir():
        tensors = _read_folder(path / TRANSFORMER if (path / TRANSFORMER).is_dir() else path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = _read_pickle(path, which)
    tensors, wrappers = without_wrappers(tensors)
    if wrappers:
        print(f"{path}: its tensors have {', '.join(wrappers)} in their names, which was taken off", flush=True)
    tensors = from_diffusers(tensors) if is_diffusers(tensors) else tensors
    if POSITION in tensors and tensors[POSITION].float().any():  # 8-bit floats have no any()
        raise ValueError(f"{path}: {POSITION} is not zero: {ADDS_POSITION}")
    return {name: tensor for name, tensor in tensors.items() if name not in LEFT_OUT}


HEADS = ("attention_head_dim", "num_cross_attention_heads")
OWN_HEADS = ("linear_head_dim", "cross_heads")
"""The keys of diffusers' and of our own configuration: channels of a linear head, number of cross-attention heads."""


def read_heads(path: Path) -> tuple[int, int] | None:
    """The channels of a linear head and the number of cross-attention heads, from a `config.json`.

    The file is diffusers' or that of our own checkpoint (`model.checkpoint`). It lies in the folder of the weights, or,
    if it is diffusers', beside a single file of them. Without one the result is None. Raises ValueError that names the
    file if it is neither's, or if its network computes another function than ours.
    """
    config = _config_of(Path(path))
    if config is None:
        return None
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        names = OWN_HEADS if values.keys() >= set(OWN_HEADS) else HEADS
        linear_head_dim, cross_heads = (int(values[name]) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{config} is no configuration of {CONFIG_CLASS} ({error!r})") from None
    if (scale := values.get(INTERPOLATION)) is not None:
        raise ValueError(f"{config}: {INTERPOLATION} is {scale}: {ADDS_POSITION}")
    return linear_head_dim, cross_heads


def _config_of(path: Path) -> Path | None:
    """The configuration that goes with weights. Beside a single file it counts only if it says it is diffusers'."""
    if path.is_dir():
        candidates = (path / TRANSFORMER / CONFIG, path / CONFIG)
        return next((config for config in candidates if config.is_file()), None)
    config = path.parent / CONFIG
    return config if config.is_file() and CONFIG_CLASS in config.read_text(encoding="utf-8", errors="replace") else None


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of the shards that an index names, or of the one file if there is no index."""
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder / INDEX} is no index of shards ({error}): download it again") from None
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors |= _read_safetensors(_inside(folder, name))
        return tensors
    for name in FILES:
        if (folder / name).is_file():
            return _read_safetensors(folder / name)
    variants = sorted(path for path in folder.glob("*.*.safetensors") if path.is_file() and path.name not in FILES)
    advice = f"; to take a variant name its file, {variants[0]}" if len(variants) == 1 else ""
    raise ValueError(
        f"{folder} holds no weights under the names {' or '.join((INDEX, *FILES))}: "
        f"there is {contents_of(folder)}{advice}"
    )


def _inside(folder: Path, name: str) -> Path:
    """The path of a shard beside its index. Raises ValueError if the index names a file in another folder."""
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ValueError(f"{folder / INDEX} names {name}, which is not in its folder: download it again")
    return folder / name


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises ValueError that names the file if it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except Exception as error:  # besides SafetensorError, those of the system, and torch's for kinds that it lacks
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): download it again") from None


def _read_pickle(path: Path, which: CheckpointKey) -> dict[str, Tensor]:
    """The tensors of a published checkpoint. torch's weights-only loader reads it, so nothing in the file is run."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds more than tensors, or is damaged, and was not read: {reason}") from None
    except (EOFError, RuntimeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): download it again") from None
    # Published checkpoints have more keys than this one; weights alone are a mapping of names to tensors.
    if isinstance(checkpoint, dict) and "state_dict" in checkpoint:
        if which not in checkpoint:
            raise ValueError(f"{path} has no {which}: it has {', '.join(map(str, checkpoint))}")
        checkpoint = checkpoint[which]
    if not isinstance(checkpoint, dict) or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        keys = [*map(str, checkpoint)] if isinstance(checkpoint, dict) else []
        found = shortened(keys, SHOWN_KEYS) if keys else f"a {type(checkpoint).__name__}"
        raise ValueError(
            f"{path} holds no weights: it must be a mapping of names to tensors, or one under state_dict, "
            f"and it holds {found}"
        )
    return checkpoint

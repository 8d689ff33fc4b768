"""From tensors to a network: its configuration is read from their shapes, and what does not fit is listed."""

import difflib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.finite_numbers import check_finite_weights
from model.network import NetworkConfig, Sana
from model.numerics import CheckpointKey, Numerics
from model.weights.folder_contents import shortened
from model.weights.weight_files import read_heads, read_weights
from model.weights.weight_names import BLOCKS

PUBLISHED_HEADS = {1152: (32, 16), 2240: (32, 20)}
"""Channels of a linear head and number of cross-attention heads, by hidden size. No tensor's shape tells them."""
SHOWN_NAMES = 4
"""Tensors that a message names where the weights are not SANA's."""


def load_weights(
    path: Path,
    numerics: Numerics,
    which: CheckpointKey = "state_dict",
    heads: tuple[int, int] | None = None,
) -> Sana:
    """The network of published weights in any format, in float32.

    Two numbers are not in the tensors' shapes: the channels of a linear head and the number of cross-attention heads.
    A published network of that width tells them. For any other width the `config.json` of a folder tells them, or else
    they are `heads`.

    Raises ValueError that names the file and everything that does not fit, or a weight that is not finite.
    """
    weights, told = read_weights(path, which), read_heads(path)
    try:
        config = config_of(weights, numerics, told or heads)
        check_fit(weights, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (IndexError, ArithmeticError, RuntimeError, TypeError) as error:  # shapes that no network has
        raise ValueError(f"{path}: its tensors' shapes are those of no network ({error})") from None
    check_finite_weights(weights, path)
    with torch.device("meta"):  # no memory for weights that are replaced at once
        network = Sana(config)
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return network.requires_grad_(True)


def config_of(weights: Mapping[str, Tensor], numerics: Numerics, heads: tuple[int, int] | None) -> NetworkConfig:
    """The configuration that the shapes of tensors tell, with the published heads of that width, or else `heads`.

    Raises ValueError that names a missing tensor that is needed for it, or says that the heads are not known.
    """
    try:
        patches, caption = weights["x_embedder.proj.weight"], weights["y_embedder.y_proj.fc1.weight"]
        inner = weights[f"{BLOCKS}.0.mlp.point_conv.conv.weight"].shape[1]
    except KeyError as error:
        found = shortened([*weights], SHOWN_NAMES) if weights else "none"
        raise ValueError(
            f"{error.args[0]} is missing: these are no weights of SANA, whose tensors are named as in the published "
            f"code or in diffusers; the names here are {found}"
        ) from None
    hidden, channels, patch_size = patches.shape[:3]
    known = PUBLISHED_HEADS.get(hidden, heads)
    if known is None:
        raise ValueError(f"no published network is {hidden} wide: give its linear_head_dim and cross_heads")
    # A number that is left out between two others is found by `check_fit`, as missing tensors.
    numbers = {int(name.split(".")[1]) for name in weights if name.startswith(f"{BLOCKS}.")}
    if max(numbers) >= len(weights):  # a damaged number would build blocks for ever
        raise ValueError(f"block {max(numbers)} is named, and there are {len(weights)} tensors")
    return NetworkConfig(
        in_channels=channels,
        hidden_size=hidden,
        depth=max(numbers) + 1,
        linear_head_dim=known[0],
        cross_heads=known[1],
        mlp_ratio=_ratio(inner, hidden),
        patch_size=patch_size,
        caption_channels=caption.shape[1],
        qk_norm=f"{BLOCKS}.0.attn.q_norm.weight" in weights,
        numerics=numerics,
    )


def _ratio(inner: int, hidden: int) -> float:
    """A ratio that gives `inner` when it is multiplied by `hidden` and cut to a whole number, as the network does."""
    ratio = inner / hidden
    # The product may lie a rounding below `inner`, and would be cut to one less.
    return ratio if int(ratio * hidden) == inner else (inner + 0.5) / hidden


def check_fit(weights: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Raise ValueError that lists each tensor that is missing, surplus (with the nearest known name) or misshapen."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in Sana(config).state_dict().items()}
    missing = [name for name in wanted if name not in weights]
    surplus = [f"{name} (nearest: {_nearest(name, wanted)})" for name in weights if name not in wanted]
    misshapen = [
        f"{name} is {tuple(tensor.shape)}, not {tuple(wanted[name])}"
        for name, tensor in weights.items()
        if name in wanted and tensor.shape != wanted[name]
    ]
    kinds = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    faults = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise ValueError("; ".join(faults))


def _nearest(name: str, known: Mapping[str, object]) -> str:
    """The known name that is most like `name`."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]

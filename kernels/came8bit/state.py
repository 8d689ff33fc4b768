"""What CAME keeps of a parameter from step to step, and what one step needs to know of one parameter.

* For a matrix (O, I) or a 1x1 convolution (O, I, 1, 1) the state is the momentum and the row and column means of
  squares and of instabilities: `square_row` (O), `square_column` (I), `instability_row` (O), `instability_column` (I).
* For any other parameter the state is the momentum and the mean of squares `square`, both of the parameter's shape.
* The momentum is `momentum` in float32, or it is `momentum_codes` (uint8, the parameter's shape) with `momentum_scale`
  and, under the linear map, `momentum_minimum`: float32, one number for each block of 2048 entries of the whole
  flattened parameter.
* A bfloat16 parameter whose optimizer corrects it has `correction` (int8, the parameter's shape, see `correction`).

All but the codes and the correction is float32. If a parameter is sharded by rows (a DTensor), tensors that have rows
are sharded in the same way, and every rank has the column means and the numbers of all blocks.
"""

from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.blockwise import BLOCK, Map, Quantized, dequantize, quantize
from kernels.came8bit.came_step import NO_CORRECTIONS, Betas, Corrections, Epsilons
from kernels.came8bit.rounding import Key

QUANTIZED_ABOVE = 16_384  # entries of a matrix

State = dict[str, Tensor]


class Settings(NamedTuple):
    """The settings of an optimizer that a step depends on."""

    lr: float
    betas: Betas
    eps: Epsilons
    weight_decay: float
    corrections: Corrections = NO_CORRECTIONS


class Work(NamedTuple):
    """One step of one parameter. `key` draws the bits of stochastic rounding; None stands for rounding to nearest."""

    parameter: Tensor
    gradient: Tensor
    state: State
    settings: Settings
    key: Key | None


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or a 1x1 convolution's weight (O, I, 1, 1)."""
    return parameter.dim() == 2 or (parameter.dim() == 4 and parameter.shape[2:] == (1, 1))


def is_dtensor(parameter: Tensor) -> bool:
    """Whether a parameter is a DTensor, of which this process may hold some rows only."""
    # `isinstance` would need the class, whose import takes half a second that only shards need.
    return hasattr(parameter, "device_mesh")


def first_row(tensor: Tensor) -> int:
    """The index, in the whole tensor, of the first row that this process holds; 0 for a tensor that is not sharded."""
    if not any(placement.is_shard(0) for placement in getattr(tensor, "placements", ())):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # takes half a second

    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)[1][0]


def sharded_dimension(parameter: Tensor) -> int:
    """The mesh dimension over which the rows of a DTensor are sharded.

    Raises ValueError unless the rows are sharded over one mesh dimension and copied over all others.
    """
    rows = [dimension for dimension, place in enumerate(parameter.placements) if place.is_shard(0)]
    copies = [place for place in parameter.placements if place.is_replicate()]
    if len(rows) != 1 or len(copies) != len(parameter.placements) - 1:
        raise ValueError(f"CAME steps parameters that are sharded by rows, once, not by {parameter.placements}")
    return rows[0]


def is_packed(parameter: Tensor, map: Map | None) -> bool:
    """Whether the momentum is kept in 8 bits: there is a map, and the parameter is a matrix of over 16,384 entries."""
    return map is not None and is_matrix(parameter) and parameter.numel() > QUANTIZED_ABOVE


def initial_state(parameter: Tensor, map: Map | None, corrected: bool = False) -> State:
    """The state of a parameter before its first step, which is all zeros.

    `corrected` says whether the optimizer keeps corrections of bfloat16 parameters.
    """
    state: State = {}
    if corrected and parameter.dtype == torch.bfloat16:
        state["correction"] = _zeros(parameter, parameter.shape, torch.int8)
    if is_packed(parameter, map):
        state["momentum_codes"] = _zeros(parameter, parameter.shape, torch.uint8)
        for name in ("scale", "minimum") if map == "linear" else ("scale",):
            state[f"momentum_{name}"] = torch.zeros(ceil(parameter.numel() / BLOCK), device=parameter.device)
    else:
        state["momentum"] = _zeros(parameter, parameter.shape)
    if not is_matrix(parameter):
        return {**state, "square": _zeros(parameter, parameter.shape)}
    for statistic in ("square", "instability"):
        state[f"{statistic}_row"] = _zeros(parameter, parameter.shape[:1])
        state[f"{statistic}_column"] = torch.zeros(parameter.shape[1], device=parameter.device)
    return state


def pack(momentum: Tensor, map: Map | None) -> State:
    """The part of the state that holds `momentum` (K, *shape), of K parameters of one shape."""
    if not is_packed(momentum[0], map):
        return {"momentum": momentum}
    codes, scale, minimum = quantize(momentum.flatten(1), map)
    state = {"momentum_codes": codes.view(momentum.shape), "momentum_scale": scale}
    return state if minimum is None else {**state, "momentum_minimum": minimum}


def unpack(state: State) -> Tensor:
    """The momentum (K, *shape) that `pack` stored: a new tensor if it is in 8 bits, else the stored tensor itself."""
    if "momentum" in state:
        return state["momentum"]
    codes = state["momentum_codes"]
    quantized = Quantized(codes.flatten(1), state["momentum_scale"], state.get("momentum_minimum"))
    return dequantize(quantized).view(codes.shape)


def layout(state: State) -> dict[str, Any]:
    """The dtype, shape and placement of each tensor of a state."""
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), *getattr(tensor, "placements", ()))
        for name, tensor in sorted(state.items())
    }


def _zeros(parameter: Tensor, shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros on the parameter's device, sharded as the parameter is."""
    if is_dtensor(parameter):
        sharded_dimension(parameter)
        from torch.distributed.tensor import zeros  # takes half a second, which only shards need

        return zeros(shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements)
    return torch.zeros(shape, dtype=dtype, device=parameter.device)

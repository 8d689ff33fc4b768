"""Parameters sharded by rows over ranks (FSDP2's `fully_shard`), and access to the rows that this rank holds."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels.came8bit.state import first_row
from model.checkpoint import WEIGHTS, stored_rows
from model.finite_numbers import check_finite_weights
from model.network import Sana
from tasks.computing import ranks
from tasks.params.compute_params import Compute


def is_sharded_training(compute: Compute) -> bool:
    """Whether the processes of a training hold rows of its parameters, and not each all of them."""
    return ranks.world_size() > 1 and compute.parallelism != "ddp"


def shard(network: Sana, loss: nn.Module, device: str, dtype: str = "float32", replicas: int = 1) -> None:
    """Shard the network in place: each block is a unit, and `loss`, which contains the network, is the last unit.

    Weights are gathered in `dtype`. Gradients are means over ranks, summed in float32. With `replicas` above 1 the
    ranks are that many groups of neighbours. Each group has all rows among its ranks (HSDP). The network may be on the
    meta device: `load_rows` then gives it numbers. Raises RuntimeError if a parameter is not sharded afterwards.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes a second, which only sharding needs

    # FSDP2 would round the inputs of each unit too, and so the residual stream, which autocast keeps in float32.
    # Autocast stays on for the activations. It makes no copies of weights that have its dtype already.
    gathered_in = torch.bfloat16 if dtype == "bfloat16" else None
    policy = MixedPrecisionPolicy(gathered_in, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = device_mesh(device, replicas)
    for unit in (*network.blocks, loss):
        # FSDP2 would leave the outermost unit whole after a forward pass. Then `Ema.swap` after an evaluation would
        # exchange the shards, and the next step would still compute with the whole copies.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    prefetch([*network.blocks])
    for name, parameter in network.named_parameters():
        rows, all_rows = len(local(parameter)), len(parameter)
        most = -(-all_rows // (ranks.world_size() // replicas))  # rounded up
        if not is_sharded(parameter) or rows > most:
            raise RuntimeError(f"{name} is not sharded: {rows} of its {all_rows} rows are on rank {ranks.rank()}")


def device_mesh(device: str, replicas: int) -> "torch.distributed.device_mesh.DeviceMesh":
    """All ranks in one row, or in `replicas` rows of neighbours: torchrun numbers the ranks of a node in a row."""
    from torch.distributed.device_mesh import init_device_mesh

    if replicas == 1:
        return init_device_mesh(device, (ranks.world_size(),))
    shape = (replicas, ranks.world_size() // replicas)
    return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))


def prefetch(units: list[nn.Module]) -> None:
    """Have each unit's weights gathered while the unit before it computes. `units` are in the order of the forward.

    FSDP2 by itself starts a gather only when Python reaches the unit, which may be too late on a GPU.
    """
    for before, after in pairwise(units):
        before.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([before])


def sum_over_ranks(loss: nn.Module, last: bool) -> None:
    """Say whether the next backward pass is the `last` of its step, after which gradients are summed over ranks.

    Until then each rank adds up its own gradients, whole and in float32: 4 bytes a parameter. Under HSDP the groups
    sum at every pass, over the fast links of a node, so that each rank adds up gradients of its own rows alone. Sums
    over groups wait for the last pass.
    """
    if next(loss.parameters()).device_mesh.ndim > 1:
        loss.set_requires_all_reduce(last)
    else:
        loss.set_requires_gradient_sync(last)


@torch.no_grad()
def load_rows(network: Sana, folder: Path, device: str) -> None:
    """Give a sharded network that is on the meta device this rank's rows of a checkpoint, and read no others.

    Raises ValueError that names the folder if the weights do not fit the network, or if a row is not finite.
    """
    from torch.distributed.tensor import DTensor

    for prefix, module in network.named_modules():
        tensors = {}
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}" if prefix else name
            rows = torch.empty(local(parameter).shape, dtype=parameter.dtype, device=device)
            stored_rows(folder, full_name, parameter.shape, first_row(parameter), rows)
            layout = parameter.device_mesh, parameter.placements
            tensors[name] = DTensor.from_local(
                rows, *layout, run_check=False, shape=parameter.shape, stride=parameter.stride()
            )
        if tensors:
            # Assigned module by module: FSDP2 pads rows that are uneven by copying them, of one module at a time.
            module.load_state_dict(tensors, strict=False, assign=True)
    check_finite_weights({name: local(parameter) for name, parameter in network.named_parameters()}, folder / WEIGHTS)


def holds_first_copy(tensor: Tensor) -> bool:
    """Whether this rank is in the first group among those that hold the same rows of a tensor (HSDP)."""
    places = zip(tensor.placements, tensor.device_mesh.get_coordinate(), strict=True)
    return all(coordinate == 0 for placement, coordinate in places if placement.is_replicate())


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor that is split by rows, so that other ranks hold the other rows."""
    return any(placement.is_shard(0) for placement in getattr(tensor, "placements", ()))


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank holds: a view, not a copy."""
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def gathered(tensor: Tensor) -> Tensor:
    """All rows of a tensor, on every rank. For a sharded tensor this is a collective: all ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "placements") else tensor


def whole(network: Sana) -> Sana:
    """A sharded network with all its rows, in the CPU memory of rank 0; the copies of other ranks have no data.

    This is a collective: all ranks must call it. A network that is not sharded is returned as it is.
    """
    if not any(map(is_sharded, network.parameters())):
        return network
    with torch.device("meta"):
        copy = Sana(network.config)
    for name, tensor in network.state_dict().items():
        rows = gathered(tensor)
        if ranks.rank() == 0:
            copy.load_state_dict({name: rows.cpu()}, strict=False, assign=True)
    return copy

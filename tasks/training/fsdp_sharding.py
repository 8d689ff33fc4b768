"""Parameters sharded by rows over ranks (FSDP2's `fully_shard`), and access to the rows that this rank holds."""

import torch
from torch import Tensor, nn

from model.network import Sana
from tasks.computing import ranks


def shard(network: Sana, loss: nn.Module, device: str) -> None:
    """Shard the network in place: each block is a unit, and `loss`, which contains the network, is the last unit.

    Gradients are means over ranks, summed in float32. Raises RuntimeError if a parameter is not sharded afterwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes a second, which only sharding needs

    mesh, policy = init_device_mesh(device, (ranks.world_size(),)), MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for unit in (*network.blocks, loss):
        # FSDP2 would leave the outermost unit whole after a forward pass. Then `Ema.swap` after an evaluation would
        # exchange the shards, and the next step would still compute with the whole copies.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for name, parameter in network.named_parameters():
        rows, all_rows = len(local(parameter)), len(parameter)
        most = -(-all_rows // ranks.world_size())  # rounded up
        if not is_sharded(parameter) or rows > most:
            raise RuntimeError(f"{name} is not sharded: {rows} of its {all_rows} rows are on rank {ranks.rank()}")


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

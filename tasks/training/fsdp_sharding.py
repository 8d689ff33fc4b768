"""Parameters sharded by rows over ranks (FSDP2's `fully_shard`), and the rows of them that are here."""

import torch
from torch import Tensor, nn

from model.network import Sana
from tasks.computing import ranks


def shard(network: Sana, loss: nn.Module, device: str) -> None:
    """Shard the network in place: each block for itself, and what is left with `loss`, which it is trained in.

    What makes keys and values of text is apart from its block, as it runs for all blocks before the first. Gradients
    are the mean over ranks, summed in float32. Raises RuntimeError if a parameter is not really sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # a second that only shards need

    mesh, policy = init_device_mesh(device, (ranks.world_size(),)), MixedPrecisionPolicy(reduce_dtype=torch.float32)
    of_text = [[block.cross_attn.kv_linear, block.cross_attn.k_norm] for block in network.blocks]
    for together in (*of_text, *network.blocks, loss):
        # also the last: what stayed whole after an evaluation would not see the average change places with the weights
        fully_shard(together, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for name, parameter in network.named_parameters():
        rows, all_rows = len(local(parameter)), len(parameter)
        most = -(-all_rows // ranks.world_size())
        if not is_sharded(parameter) or rows > most:
            raise RuntimeError(f"{name} is not sharded: {rows} of its {all_rows} rows are on rank {ranks.rank()}")


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor by rows, of which other ranks have the others."""
    return any(placement.is_shard(0) for placement in getattr(tensor, "placements", ()))


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that are here; they share its memory."""
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def gathered(tensor: Tensor) -> Tensor:
    """All rows of a tensor, on every rank: a collective, if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "placements") else tensor


def whole(network: Sana) -> Sana:
    """A sharded network with all its rows, in the CPU's memory of rank 0; on other ranks it has no data. A collective.

    Where nothing is sharded, the network itself.
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

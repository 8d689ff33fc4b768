"""Depth growth: a deeper network that starts from a trained shallow one (SANA-1.5 section 2.2).

There are three strategies:

* partial preservation: new blocks, which start as the identity, follow the kept blocks (the paper's choice)
* cyclic replication: block i is a copy of the kept block whose number is i modulo the number of kept blocks
* block replication: every kept block is repeated in place

Each strategy may first leave out the last `drop` blocks of the trained network. The paper drops 2 of 20, since new
blocks behind the most output-specific ones stay in local minima. Everything outside the blocks is copied.

The paper states block replication for whole ratios alone. Here any depth works: the copies are spread evenly, and the
first blocks get one copy more where the ratio is not whole.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from model.network import NetworkConfig, Sana, SanaBlock
from model.surgery import with_blocks

Strategy = Literal["partial_preservation", "cyclic", "block_replication"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

OUTPUT_PROJECTIONS = ("attn.proj.weight", "cross_attn.proj.weight", "mlp.point_conv.conv.weight")
DEPTH_CONV = "mlp.depth_conv.conv.weight"
# As in the published code. A depth-wise 3x3 kernel sums 9 values, where the other layers sum a whole width.
DEPTH_CONV_STD = 0.2


def drop_count(depth: int, share: float) -> int:
    """How many of `depth` blocks a share of them is, rounded half up; one block always stays. A tenth of 20 is 2."""
    return min(int(depth * share + 0.5), depth - 1)


def grow(network: Sana, depth: int, strategy: Strategy, drop: int, init_std: float, generator: torch.Generator) -> Sana:
    """A network of `depth` blocks, grown from all but the last `drop` blocks of `network`, which is left as it is.

    `init_std` and `generator`, which must be on the CPU, serve the new blocks of partial preservation.

    Raises ValueError if no block is kept or if `depth` is below the number of kept blocks.
    """
    kept = list(network.blocks)[: len(network.blocks) - drop]
    if drop < 0 or not kept:
        raise ValueError(f"cannot drop {drop} of {len(network.blocks)} blocks: at least one must stay")
    if depth < len(kept):
        raise ValueError(f"cannot grow {len(kept)} blocks to {depth}: choose a depth of {len(kept)} or more")
    if strategy == "cyclic":
        return with_blocks(network, [kept[i % len(kept)] for i in range(depth)])
    if strategy == "block_replication":
        return with_blocks(network, [kept[i * len(kept) // depth] for i in range(depth)])
    # New blocks are drawn on the CPU, so that they are the same whatever the device.
    device = network.final_layer.linear.weight.device
    new = [identity_block(network.config, init_std, generator).to(device) for _ in range(depth - len(kept))]
    return with_blocks(network, [*kept, *new])


@torch.no_grad()
def identity_block(config: NetworkConfig, init_std: float, generator: torch.Generator) -> SanaBlock:
    """A new block that returns its input: the output projections of both attentions and of the Mix-FFN are zero.

    Norms are 1 and biases 0. The depth-wise convolution is drawn from N(0, 0.2^2), everything else from
    N(0, init_std^2). The published code draws the biases of the Mix-FFN too, and fixes init_std at 0.02, which is
    1/sqrt(width) for its 2240 channels.
    """
    block = SanaBlock(config)
    for name, parameter in block.named_parameters():
        if name in OUTPUT_PROJECTIONS or name.endswith("bias"):
            parameter.zero_()
        elif "_norm." in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=DEPTH_CONV_STD if name == DEPTH_CONV else init_std, generator=generator)
    return block


def function_distance(velocity: Tensor, reference: Tensor) -> float:
    """Relative L2 distance between the outputs of two networks for the same input. 0 means the same function."""
    return ((velocity - reference).double().norm() / reference.double().norm()).item()

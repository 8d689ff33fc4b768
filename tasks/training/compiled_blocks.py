"""torch.compile of the network's blocks, for training (`compute.compile`)."""

import torch

from model.network import Sana


def compile_blocks(network: Sana, backend: str = "inductor") -> None:
    """Compile the forward pass of each block, and with it its backward pass, at the first call with each kind of input.

    All blocks share what is compiled, as they are alike. Triton kernels run inside as they are. `forward` alone is
    compiled, so hooks on a block run outside: those of FSDP2, which torch does not compile, and those by which a
    teacher reads the outputs of blocks. Call this before the parameters are sharded.
    """
    for block in network.blocks:
        block.forward = torch.compile(block.forward, backend=backend)

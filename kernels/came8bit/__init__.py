"""The optimizer CAME and its 8-bit form (SANA-1.5 section 2.3).

`came_step` is the algorithm and `came_optimizer` torch's optimizer. The files `step_...` apply the algorithm: in
PyTorch, in Triton, on shards, and during the backward pass. `batches` stacks parameters of one shape, which takes fewer
calls. The folder may import torch, triton and `kernels`.
"""

from kernels.came8bit.came_optimizer import Came, Came8bit

__all__ = ["Came", "Came8bit"]

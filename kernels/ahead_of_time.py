"""What a module of Triton kernels tells of its kernels, so that they can be compiled on a machine without a GPU.

Each such module has a function `ahead_of_time() -> list[Build]` that names its kernels at the sizes of SANA-1.5's 1.6B.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Build(NamedTuple):
    """One kernel and what it is compiled for.

    `types` has the type of each argument in Triton's words: `*bf16` is a pointer, `i32` an integer. `constants` are the
    compile-time arguments. `divisible` names the arguments that are multiples of 16, which Triton finds out by itself
    when it launches a kernel. `options` belong to the launch, such as `num_warps`.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: frozenset[str] = frozenset()
    options: Mapping[str, Any] = {}

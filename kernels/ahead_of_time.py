"""What a module of Triton kernels says of itself, so that its kernels can be compiled on a machine without a GPU.

Each such module has a function `ahead_of_time() -> list[Build]` that names its kernels at the sizes of SANA-1.5's 1.6B.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Build(NamedTuple):
    """One kernel with the types of its arguments, in Triton's words: `*bf16` for a pointer, `i32` for an integer.

    `constants` are its compile-time arguments; `divisible` the arguments that are multiples of 16, as Triton finds out
    itself at a launch; `options` are the launch's own, such as `num_warps`.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: frozenset[str] = frozenset()
    options: Mapping[str, Any] = {}

"""The limit of `kernels.float16` inside Triton kernels."""

import triton
import triton.language as tl

from kernels import float16

LARGEST = tl.constexpr(float16.LARGEST)


@triton.jit
def store(pointers, wide, mask):
    """Store a float32 block in the pointers' dtype, limited if that is float16."""
    if pointers.dtype.element_ty == tl.float16:
        limited = tl.minimum(tl.maximum(wide, -LARGEST), LARGEST)
        # The comparison is false for NaN and for infinities, which stay what they are.
        wide = tl.where(tl.abs(wide) < float("inf"), limited, wide)
    tl.store(pointers, wide.to(pointers.dtype.element_ty), mask=mask)

"""The limit of `kernels.saturation` inside Triton kernels."""

import triton
import triton.language as tl

from kernels import saturation

LARGEST = tl.constexpr(saturation.LARGEST)
OVERFLOW = tl.constexpr(saturation.OVERFLOW)


@triton.jit
def store(pointers, wide, mask, saturated):
    """Store a float32 block in the pointers' dtype; in float16 limited, and counted in `saturated` (int64)."""
    if pointers.dtype.element_ty == tl.float16:
        size = tl.abs(wide)
        beyond = mask & (size >= OVERFLOW) & (size < float("inf"))
        wide = tl.where(beyond, tl.where(wide > 0, LARGEST, -LARGEST), wide)
        count = tl.sum(beyond.to(tl.int32))
        if count > 0:
            tl.atomic_add(saturated, count.to(tl.int64))
    tl.store(pointers, wide.to(pointers.dtype.element_ty), mask=mask)

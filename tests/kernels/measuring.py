"""How kernels are run and compared in tests: on memory poisoned with NaN, against float64."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# of the largest entry; the interpreter cuts bits off where a GPU rounds to bfloat16
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, so that what a kernel leaves unwritten shows; operations that vary by run are errors."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # a stage that ran in this process has turned it off
    try:
        assert torch.empty(2).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str, scale: float = 0.0) -> None:
    """`actual`, computed from `dtype`, is the float64 `expected` to that dtype's rounding of its largest entry.

    `scale` stands in for the largest entry where all are the difference of numbers that large.
    """
    error = (actual.double() - expected).abs().max().item()
    allowed = TOLERANCES[dtype] * max(expected.abs().max().item(), scale) + torch.finfo(dtype).smallest_normal
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g}"

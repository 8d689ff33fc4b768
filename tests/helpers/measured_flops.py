"""Floating-point operations of what a test runs, by torch's counter."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def measured_flops(run: Callable[[], Any]) -> int:
    """Operations while `run` runs.

    Torch takes the backward pass of a convolution in groups for a dense one's; here each gradient costs a forward pass.
    """

    def backward(gradient: Any, inputs: Any, weight: Any, *rest: Any, **_more: Any) -> int:
        return conv_flop_count(inputs, weight, gradient, transposed=rest[4]) * sum(rest[7][:2])

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward}) as counter:
        run()
    return counter.get_total_flops()

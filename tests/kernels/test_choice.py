"""Choice between a kernel and its reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import kernel_choice
from kernels.kernel_choice import use_triton
from kernels.linear_attention import linear_attention
from kernels.mix_feed_forward import mix_feed_forward
from kernels.modulation import gated_residual, modulate

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_triton_on_cuda_alone_and_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "INSTALLED", True)
    assert (use_triton("auto", CUDA), use_triton("auto", CPU)) == (True, False)
    monkeypatch.setattr(kernel_choice, "INSTALLED", False)
    assert not use_triton("auto", CUDA)


def test_triton_on_the_cpu_is_refused_in_one_line_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "INSTALLED", True)
    monkeypatch.setattr(kernel_choice, "INTERPRETED", True)
    assert use_triton("triton", CPU)
    monkeypatch.setattr(kernel_choice, "INTERPRETED", False)
    with pytest.raises(ValueError, match="triton was asked for, but cannot run on cpu") as caught:
        use_triton("triton", CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(lambda: linear_attention(torch.ones(1, 3, 96), None, 32, 1e-8, "triton"), id="linear_attention"),
        pytest.param(
            lambda: mix_feed_forward(torch.ones(1, 4, 4), torch.ones(4, 1, 3, 3), torch.ones(4), (2, 2), "triton"),
            id="mix_feed_forward",
        ),
        pytest.param(lambda: modulate(*torch.ones(3, 1, 1, 16), "triton"), id="modulate"),
        pytest.param(lambda: gated_residual(*torch.ones(3, 1, 1, 16), "triton"), id="gated_residual"),
    ],
)
def test_every_operation_refuses_triton_where_it_cannot_run(
    operation: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "INTERPRETED", False)
    with pytest.raises(ValueError, match="cannot run on cpu"):
        operation()


def test_what_the_kernel_cannot_do_sends_auto_to_the_reference_and_is_named_to_who_asks_for_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_choice, "INSTALLED", True)
    assert not use_triton("auto", CUDA, "it has no kernel")
    with pytest.raises(ValueError, match="triton was asked for, but it has no kernel"):
        use_triton("triton", CUDA, "it has no kernel")


def test_the_reference_is_taken_anywhere_when_it_is_asked_for() -> None:
    assert not use_triton("reference", CPU)
    assert not use_triton("reference", CUDA)

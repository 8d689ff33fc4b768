"""Choice between a kernel and its reference."""

import pytest
import torch

from kernels import choice
from kernels.choice import use_triton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_triton_on_cuda_alone_and_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "INSTALLED", True)
    assert (use_triton("auto", CUDA), use_triton("auto", CPU)) == (True, False)
    monkeypatch.setattr(choice, "INSTALLED", False)
    assert not use_triton("auto", CUDA)


def test_triton_on_the_cpu_is_refused_in_one_line_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "INSTALLED", True)
    monkeypatch.setattr(choice, "INTERPRETED", True)
    assert use_triton("triton", CPU)
    monkeypatch.setattr(choice, "INTERPRETED", False)
    with pytest.raises(ValueError, match="triton was asked for, but cannot run on cpu") as caught:
        use_triton("triton", CPU)
    assert "\n" not in str(caught.value)


def test_what_the_kernel_cannot_do_sends_auto_to_the_reference_and_is_named_to_who_asks_for_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "INSTALLED", True)
    assert not use_triton("auto", CUDA, "it has no kernel")
    with pytest.raises(ValueError, match="triton was asked for, but it has no kernel"):
        use_triton("triton", CUDA, "it has no kernel")


def test_the_reference_is_taken_anywhere_when_it_is_asked_for() -> None:
    assert not use_triton("reference", CPU)
    assert not use_triton("reference", CUDA)

"""Blockwise 8-bit quantisation: the Triton kernel on CUDA devices where Triton is installed, else plain PyTorch."""

import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from kernels.blockwise import reference
from kernels.blockwise.reference import BLOCK, Quantized

__all__ = ["BLOCK", "Quantized", "dequantize", "implementation", "quantize"]


def implementation(device: torch.device) -> ModuleType:
    """The module whose `quantize` and `dequantize` serve tensors on `device`."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return reference
    from kernels.blockwise import triton_kernel

    return triton_kernel


def quantize(values_KN: Tensor) -> Quantized:
    """K flattened tensors (float32) in 8 bits; see `kernels.blockwise.reference`."""
    return implementation(values_KN.device).quantize(values_KN)


def dequantize(quantized: Quantized) -> Tensor:
    """The float32 tensors (K, N) that `quantized` stands for."""
    return implementation(quantized.codes.device).dequantize(quantized)

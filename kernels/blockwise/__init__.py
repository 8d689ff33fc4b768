"""Blockwise 8-bit quantisation: the Triton kernel on CUDA devices where Triton is installed, else plain PyTorch."""

import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from kernels.blockwise import reference
from kernels.blockwise.reference import BLOCK, Map, Quantized

__all__ = ["BLOCK", "Map", "Quantized", "dequantize", "implementation", "quantize"]


def implementation(device: torch.device) -> ModuleType:
    """The module whose `quantize` and `dequantize` serve tensors on `device` under the linear map."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return reference
    from kernels.blockwise import triton_kernel

    return triton_kernel


def quantize(values_KN: Tensor, map: Map = "linear") -> Quantized:
    """K flattened tensors (float32) in 8 bits; see `kernels.blockwise.reference`."""
    if map == "dynamic":
        return reference.quantize(values_KN, map)
    return implementation(values_KN.device).quantize(values_KN)


def dequantize(quantized: Quantized) -> Tensor:
    """The float32 tensors (K, N) that `quantized` stands for."""
    if quantized.minimum is None:
        return reference.dequantize(quantized)
    return implementation(quantized.codes.device).dequantize(quantized)

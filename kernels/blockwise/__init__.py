"""Blockwise 8-bit quantisation (SANA-1.5 section 2.3) in plain PyTorch, and in `triton_kernel` for use inside kernels.

The folder may import torch and triton.
"""

from kernels.blockwise.reference import BLOCK, Map, Quantized, dequantize, quantize

__all__ = ["BLOCK", "Map", "Quantized", "dequantize", "quantize"]

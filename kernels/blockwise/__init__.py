"""Blockwise 8-bit quantisation in plain PyTorch; `triton_kernel` has it for kernels that quantise what they compute."""

from kernels.blockwise.reference import BLOCK, Map, Quantized, dequantize, quantize

__all__ = ["BLOCK", "Map", "Quantized", "dequantize", "quantize"]

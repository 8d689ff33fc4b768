"""Weights in and out: the formats of the published code and of diffusers, and their names for the same tensors.

The folder may import torch, diffusers and `model`.
"""

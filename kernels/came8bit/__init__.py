"""CAME and its 8-bit form."""

from kernels.came8bit.came_optimizer import Came, Came8bit

__all__ = ["Came", "Came8bit"]

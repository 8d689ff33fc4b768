"""The precision of matrix products, from `compute.dtype`."""

import torch


def autocast(device: str, dtype: str) -> torch.autocast:
    """Autocast to bfloat16 on `device`, or a context that does nothing for float32."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")

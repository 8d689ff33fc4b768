"""How many floating-point operations a second a GPU can do at most, by its maker's data sheet."""

import re

import torch

TERA = 1e12

BFLOAT16_PEAKS = {
    r"\bGB200\b": 2500 * TERA,
    r"\bB200\b": 2250 * TERA,
    r"\bG?H200\b": 989 * TERA,
    r"\bH100 PCIe\b": 756 * TERA,
    r"\bH100 NVL\b": 835 * TERA,
    r"\bH100 .*HBM3": 989 * TERA,  # SXM
    r"\bA100\b": 312 * TERA,
    r"\bL40S\b": 362 * TERA,
    r"\bRTX 6000 Ada\b": 364 * TERA,
    r"\bRTX A6000\b": 155 * TERA,
    r"\bRTX 5090$": 209 * TERA,  # a laptop's has the same name with more behind it, and is slower
    r"\bRTX 4090$": 165 * TERA,
    r"\bRTX 3090$": 71 * TERA,
}
"""Dense products of bfloat16 that are summed in float32, by a pattern that the name of the GPU has to contain."""


def peak_flops(device: str, dtype: str) -> float | None:
    """The peak of the current GPU in operations a second; None on the CPU, for an unlisted GPU, and for float32.

    Products of float32 have no one peak, since torch may run them in TF32.
    """
    if device != "cuda" or dtype != "bfloat16":
        return None
    return peak_of(torch.cuda.get_device_name())


def peak_of(name: str) -> float | None:
    """The peak of the GPU that CUDA calls `name`, in operations a second in bfloat16.

    It is None for a GPU that is not listed, and for a part of one (MIG).
    """
    if "MIG" in name:
        return None
    return next((peak for pattern, peak in BFLOAT16_PEAKS.items() if re.search(pattern, name)), None)

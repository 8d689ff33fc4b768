"""Independent random streams, each derived from the experiment's one seed and a name."""

import hashlib

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and every name, and on nothing else (not on Python's hash seed)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the stream `names`. Drawing on the CPU gives the same numbers on every device."""
    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """The NumPy counterpart of `generator`."""
    return np.random.default_rng(derive(seed, *names))


def row_generator(seed: int, step: int, row: int) -> np.random.Generator:
    """A generator for one row of the batch of one step, which costs a few microseconds.

    It counts (Philox): seed, step and row are its key and its counter. So a process draws for its own rows alone,
    however many processes there are, and no two rows have a number in common.
    """
    counter = np.array([0, 0, row, step], np.uint64)  # the first two count the row's numbers
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))

"""NumPy arrays as members of shards. They are written as `.npy` bytes and read as views, without a copy."""

import io
from functools import lru_cache

import numpy as np

from tasks.system.errors import UserError

_HEADER_LENGTH = 10
"""Bytes before the header of a version 1.0 file: magic string, version, and the header's size."""


def to_npy(array: np.ndarray) -> bytes:
    """The bytes of `array` in the `.npy` format."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def view_npy(data: memoryview, where: str) -> np.ndarray:
    """The array that `.npy` bytes hold, as a read-only view of them.

    Raises UserError naming `where` if the bytes hold no plain array.
    """
    size = _HEADER_LENGTH + int.from_bytes(data[8:10], "little")
    try:
        shape, dtype = _parse_header(bytes(data[:size]))
        return np.frombuffer(data, dtype, offset=size).reshape(shape)  # refuses objects, which would be pickles
    except Exception as error:  # NumPy reads a header as Python: TypeError, SyntaxError and others come of damage
        raise UserError(f"{where} is no plain .npy array ({error}): run the stage that writes it again") from None


@lru_cache(maxsize=1024)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype. They are cached: samples share a few headers, and parsing takes longer than reading."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0")
    shape, column_major, dtype = np.lib.format.read_array_header_1_0(file)
    if column_major:
        raise ValueError("it is in column order")
    if min(shape, default=0) < 0:  # NumPy would work out a side of -1 from the number of bytes
        raise ValueError(f"its shape is {shape}")
    return shape, dtype

"""A copy of tensors in the memory of the host, laid out as the safetensors files that will be written from it.

On a GPU the memory is pinned, so that copying goes on beside the host. The next snapshot is taken into the same memory,
so a training needs the bytes of one state more, and no more than that.
"""

import json
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from tasks.training.fsdp_sharding import local

Tensors = dict[str, Tensor]

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of dtypes in a safetensors file."""


class HostSnapshot:
    """Copies of the tensors of several files. `take` makes them, and makes them again in the same memory."""

    def __init__(self) -> None:
        self.buffers: Tensors = {}
        self.copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, file: str, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
        """Copy this rank's part of the tensors of a file; returns the bytes of the file, in two pieces.

        On a GPU the second piece is filled when `wait` returns. What is queued on the stream afterwards may change the
        tensors.
        """
        # With wide dtypes first, each tensor begins at a multiple of its dtype's size.
        tensors = {name: local(tensor) for name, tensor in tensors.items()}
        ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        buffer = self._buffer(file, sum(tensor.nbytes for tensor in tensors.values()), on_gpu)
        places, start = {}, 0
        for name in ordered:
            tensor = tensors[name]
            end = start + tensor.nbytes
            buffer[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
            places[name] = (start, end)
            start = end
        if on_gpu:
            self.copied = torch.cuda.current_stream().record_event()
        return [safetensors_header(tensors, places, metadata or {}), memoryview(buffer.numpy())]

    def wait(self) -> None:
        """Return when all copies have been made. Other threads run meanwhile."""
        if self.copied is not None:
            self.copied.synchronize()

    def _buffer(self, file: str, count: int, pinned: bool) -> Tensor:
        """The memory of a file of `count` bytes: what it had before, or new memory if the number has changed."""
        if file not in self.buffers or len(self.buffers[file]) != count:
            self.buffers.pop(file, None)  # freed before the new memory is taken
            self.buffers[file] = host_memory(count, pinned)
        return self.buffers[file]


def host_memory(count: int, pinned: bool) -> Tensor:
    """`count` bytes (count,) uint8 in the memory of the host. Raises torch's CudaError if they cannot be pinned."""
    memory = torch.empty(count, dtype=torch.uint8)
    if pinned and count:
        # torch's allocator of pinned memory would round the size up to a power of two.
        place, cudart = memory.data_ptr(), torch.cuda.cudart()
        torch.cuda.check_error(cudart.cudaHostRegister(place, count, 0))
        weakref.finalize(memory, cudart.cudaHostUnregister, place)
    return memory


def safetensors_header(tensors: Tensors, places: Mapping[str, tuple[int, int]], metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file: eight bytes with its length, and JSON (huggingface.co/docs/safetensors).

    The library writes whole files alone, which could not be hashed while they are written.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, place in places.items():
        tensor = tensors[name]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text

"""Counts the operations and the memory of code, by running it on tensors without data.

It is used for networks of other libraries (AutoencoderDC, Gemma-2), and for the judge, which is too small to need
formulas of its own. The real modules run at the sizes asked for, but nothing is allocated or computed.
"""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

PRODUCT = 2  # operations of a multiplication with its addition

Made = TypeVar("Made", bound=nn.Module)


def without_data(make: Callable[[], Made]) -> Made:
    """The module that `make` makes. Its tensors have shapes and no data, and appear to be on the CPU.

    Tensors computed from them, or made in `shapes_alone()`, have no data either.
    """
    with torch.device("meta"):
        module = make()
    return emptied(module)


def emptied(module: Made) -> Made:
    """Replace a module's tensors on the device `meta` by tensors without data that appear to be on the CPU.

    The module is changed in place and returned. Code that asks for a tensor's device then takes its path for the CPU.
    """
    replaced: dict[Tensor, Tensor] = {}  # a tensor that two layers share stays shared
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if tensor not in replaced:
                        replaced[tensor] = _without_data(tensor)
                    tensors[name] = replaced[tensor]
    return module


def _without_data(tensor: Tensor) -> Tensor:
    with shapes_alone():
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def shapes_alone() -> FakeTensorMode:
    """A context in which new tensors have shapes and no data."""
    return _SHAPES


_SHAPES = FakeTensorMode(allow_non_fake_inputs=True)


def count_flops(run: Callable[[], Any]) -> int:
    """The operations of matrix products, convolutions and attention while `run` runs, backward passes included."""
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    with counter:
        run()
    return counter.get_total_flops()


def _convolution_backward(
    gradient_shape: torch.Size, input_shape: torch.Size, weight_shape: torch.Size, *rest: Any, **_more: Any
) -> int:
    """The operations of a convolution's backward pass, in place of torch's own formula.

    Torch counts a convolution in groups as if it were dense, so a depth-wise one counts as often as it has channels.
    Each gradient that is asked for, of the input or of the weight, has as many products as the forward pass.
    """
    transposed, wanted = rest[4], rest[7]  # see the arguments of aten.convolution_backward
    places = input_shape if transposed else gradient_shape
    products = places[0] * places[2:].numel() * weight_shape.numel()
    return PRODUCT * products * sum(wanted[:2])


def count_peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that are held at once by tensors made while `run` runs."""
    with _Allocations() as allocations:
        run()
    return allocations.peak


def count_saved_bytes(run: Callable[[], Any], apart: list[Tensor]) -> int:
    """The bytes that autograd saves for a backward pass while `run` runs, without the tensors `apart` (the weights)."""
    known = {id(tensor.untyped_storage()): 0 for tensor in apart}
    kept: list[torch.UntypedStorage] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            known[id(storage)] = storage.nbytes()
            kept.append(storage)  # kept alive, so that no other storage gets its id
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(known.values())


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of all storages that operations return, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in known:
                self._follow(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if self.seen.get(id(storage)) is storage:
            return
        self.seen[id(storage)] = storage
        self.now += storage.nbytes()
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size

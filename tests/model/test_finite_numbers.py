"""A number that is not finite is found wherever it stands in the weights, and the look at them copies none."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.checkpoint import load_network, save_network
from model.finite_numbers import check_finite_weights, is_finite
from tests.helpers.small_networks import small_network

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_that_is_not_finite_is_found_at_every_place(dtype: torch.dtype) -> None:
    for size in (1, 7, 33, 1000):
        numbers = torch.linspace(-3, 3, size).to(dtype)
        assert is_finite(numbers)
        for place in {0, size // 2, size - 1}:
            for bad in BAD if dtype.itemsize > 1 else BAD[:1]:  # this kind of 8-bit float has a NaN and no infinity
                broken = numbers.clone()
                broken[place] = bad
                assert not is_finite(broken), (size, place, bad)


def test_the_largest_numbers_of_a_kind_are_finite() -> None:
    for dtype in DTYPES:
        limits = torch.finfo(dtype)
        assert is_finite(torch.tensor([limits.min, limits.max], dtype=torch.float64).to(dtype)), dtype
    assert is_finite(torch.empty(0, 3))


class LargestOutput(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation makes."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = [one.numel() for one in tree_leaves(result) if isinstance(one, Tensor) and not one._is_view()]
        self.size = max([self.size, *made])
        return result


def test_the_look_at_weights_makes_no_tensor_of_their_size() -> None:
    weights = {f"{number}": torch.randn(500, 300) for number in range(10)}
    with LargestOutput() as made:
        check_finite_weights(weights, Path("here"))
    assert 0 < made.size <= len(weights)


def test_the_first_weight_that_is_not_finite_is_named_with_its_file(tmp_path: Path) -> None:
    network = small_network(2)
    with torch.no_grad():
        network.blocks[1].attn.qkv.weight[3, 5] = math.nan
        network.final_layer.linear.bias[0] = math.inf
    save_network(network, tmp_path)
    with pytest.raises(ValueError) as raised:
        load_network(tmp_path)
    said = f"{tmp_path / 'model.safetensors'}: blocks.1.attn.qkv.weight holds numbers that are not finite"
    assert str(raised.value).startswith(said) and "1 tensors more" in str(raised.value)

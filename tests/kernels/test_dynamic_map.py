"""The dynamic map: bitsandbytes' values and codes, exact zeros, and the optimizer that keeps its momentum by it."""

import pytest
import torch
from torch import Tensor

from kernels import blockwise
from kernels.blockwise import BLOCK, dynamic
from kernels.came8bit import Came, Came8bit


def values_of(entries: int) -> Tensor:
    """Numbers over many magnitudes, both signs."""
    generator = torch.Generator().manual_seed(entries)
    return torch.randn(1, entries, generator=generator) * torch.randn(1, entries, generator=generator).mul(3).exp()


def test_the_256_values_are_those_of_bitsandbytes() -> None:
    peer = pytest.importorskip("bitsandbytes.functional")
    torch.testing.assert_close(dynamic.values(torch.device("cpu")), peer.create_dynamic_map(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("entries", [1, 2047, 2048, 2049, 3 * 2048])
def test_codes_and_scales_are_those_of_bitsandbytes_with_blocks_of_2048(entries: int) -> None:
    peer = pytest.importorskip("bitsandbytes.functional")
    values = values_of(entries)
    ours = blockwise.quantize(values, "dynamic")
    # of float64 it takes the nearest value; its float32 kernel for CPUs takes one nearby
    code = peer.create_dynamic_map()
    codes, largest = torch.ops.bitsandbytes.quantize_blockwise(values.double().flatten(), code, BLOCK)
    assert ours.minimum is None
    assert torch.equal(ours.scale[0], largest)
    difference = ours.codes[0].int() - codes.int()
    # a number half-way between two values may go to either
    assert difference.abs().max() <= 1 and (difference != 0).sum() <= entries // 1000
    restored = code[codes.int()] * ours.scale.repeat_interleave(BLOCK, dim=1)[0, :entries]
    same = difference == 0
    torch.testing.assert_close(blockwise.dequantize(ours)[0][same], restored[same], rtol=1e-6, atol=0)


@pytest.mark.parametrize("entries", [2048, 2500])
def test_every_code_is_the_nearest_of_the_values(entries: int) -> None:
    values = values_of(entries)[:, -300:].double()
    candidates = dynamic.values(torch.device("cpu")).double() * values.abs().max()
    nearest = (values[0, :, None] - candidates).abs().amin(1)
    error = (blockwise.dequantize(blockwise.quantize(values.float(), "dynamic")).double() - values).abs()[0]
    assert (error <= nearest * (1 + 1e-5) + 1e-7 * values.abs().max()).all()


def test_zero_and_blocks_of_zeros_are_exact() -> None:
    values = values_of(3 * BLOCK)
    values[:, ::3] = 0
    values[:, BLOCK : 2 * BLOCK] = 0
    restored = blockwise.dequantize(blockwise.quantize(values, "dynamic"))
    assert (restored[values == 0] == 0).all()


def step_with_idle_rows(optimizer: type[Came], **options: str) -> Tensor:
    """How far rows go whose gradient is always zero, beside rows with large ones."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(160, 128))
    built = optimizer([parameter], lr=1e-3, **options)
    for _ in range(5):
        parameter.grad = torch.randn(160, 128, generator=generator)
        parameter.grad[:8] = 0
        built.step()
    return parameter[:8].abs().max()


def test_rows_without_gradient_stay_where_they_are_under_the_dynamic_map() -> None:
    assert step_with_idle_rows(Came) == 0
    assert step_with_idle_rows(Came8bit, map="dynamic") == 0
    assert step_with_idle_rows(Came8bit, map="linear") > 0


def test_momentum_of_one_map_is_refused_by_the_other_and_unknown_maps_by_name() -> None:
    built = []
    for map in ("linear", "dynamic"):
        parameter = torch.nn.Parameter(torch.ones(160, 128))
        parameter.grad = torch.ones_like(parameter)
        built.append(Came8bit([parameter], lr=1e-3, map=map))
        built[-1].step()
    with pytest.raises(ValueError, match="optimizer state of parameter 0 is"):
        built[0].load_state_dict(built[1].state_dict())
    with pytest.raises(ValueError, match="map is 'log': it must be one of"):
        Came8bit([parameter], lr=1e-3, map="log")

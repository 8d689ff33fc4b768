"""Blockwise 8-bit quantisation: the paper's equation by brute force, exact blocks, and the bits of Triton's form."""

import pytest
import torch
from torch import Tensor

from kernels import blockwise
from kernels.blockwise import BLOCK, dynamic, reference

pytest.importorskip("triton")
import triton
import triton.language as tl

from kernels.blockwise.triton_kernel import encode_dynamic, encode_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEVELS = tl.constexpr(reference.LEVELS)
ENTRIES = [1, 2, 2047, 2048, 2049, 5000, 3 * 2048]


def values_of(tensors: int, entries: int) -> Tensor:
    """Numbers over many magnitudes, both signs."""
    generator = torch.Generator().manual_seed(entries)
    shape = (tensors, entries)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(3).exp()


def brute_force(row: list[float]) -> tuple[list[int], list[float]]:
    """Codes and restored values of one flattened tensor by the equation, one number at a time, in double precision."""
    codes: list[int] = []
    restored: list[float] = []
    for start in range(0, len(row), 2048):
        block = row[start : start + 2048]
        low, span = min(block), max(block) - min(block)
        for x in block:
            codes.append(round((x - low) / span * 255) if span else 0)
            restored.append(codes[-1] * span / 255 + low)
    return codes, restored


@pytest.mark.parametrize("entries", ENTRIES)
def test_codes_follow_the_equation_over_true_blocks_of_2048_elements(entries: int) -> None:
    values = values_of(2, entries)
    quantized = blockwise.quantize(values)
    restored = blockwise.dequantize(quantized)
    assert quantized.codes.dtype == torch.uint8
    assert quantized.scale.shape == quantized.minimum.shape == (2, -(-entries // 2048))
    for row, codes, back in zip(values.tolist(), quantized.codes.tolist(), restored.tolist(), strict=True):
        expected_codes, expected_values = brute_force(row)
        # float32 may round a number within 1e-4 of a half to the other side; none of these lies so close
        assert codes == expected_codes
        largest = max(abs(x) for x in row)
        assert back == pytest.approx(expected_values, rel=1e-6, abs=1e-6 * largest)


def test_every_entry_is_within_half_a_quantum_of_its_own_block() -> None:
    values = values_of(3, 5000)
    quantized = reference.quantize(values)
    error = (reference.dequantize(quantized) - values).abs()
    quantum = quantized.scale.repeat_interleave(BLOCK, dim=1)[:, :5000]
    assert (error <= 0.5001 * quantum).all()


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("constant", [0.0, -0.3, 1e30, 1e-40])
def test_a_constant_block_is_exact(entries: int, constant: float) -> None:
    values = torch.full((1, entries), constant)
    quantized = reference.quantize(values)
    assert not quantized.codes.any()
    assert torch.equal(reference.dequantize(quantized), values)


def test_a_block_of_zeros_beside_others_stays_zero() -> None:
    values = values_of(1, 3 * BLOCK)
    values[:, BLOCK : 2 * BLOCK] = 0
    assert (reference.dequantize(reference.quantize(values))[:, BLOCK : 2 * BLOCK] == 0).all()


def test_halves_round_to_even() -> None:
    # a span of 510 puts every odd integer half-way between two codes
    values = torch.arange(511.0)[None]
    expected = [round(value / 2) for value in range(511)]
    assert reference.quantize(values).codes[0].tolist() == expected


@pytest.mark.parametrize("map", ["linear", "dynamic"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_not_hidden(bad: float, map: blockwise.Map) -> None:
    values = values_of(1, 2 * BLOCK)
    values[0, 5] = bad
    restored = reference.dequantize(reference.quantize(values, map))
    lost = restored[0, :BLOCK].isnan()
    assert lost.all() if map == "linear" else lost.any()
    assert restored[0, BLOCK:].isfinite().all()


@pytest.mark.parametrize("entries", ENTRIES)
def test_tensors_quantised_together_have_the_bits_they_have_alone(entries: int) -> None:
    values = values_of(3, entries)
    together = reference.quantize(values)
    for index in range(3):
        alone = reference.quantize(values[index : index + 1])
        assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, together, strict=True))


@triton.jit
def encode_kernel(values, codes, scales, minima, thresholds, entries, MAP: tl.constexpr, BLOCK: tl.constexpr):
    """Encode block `program_id(0)` of one tensor."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < entries
    x = tl.load(values + place, mask=inside, other=0.0)
    if MAP == "dynamic":
        code, scale = encode_dynamic(x, inside, thresholds)
    else:
        code, scale, minimum = encode_linear(x, inside, LEVELS)
        tl.store(minima + tl.program_id(0), minimum)
    tl.store(scales + tl.program_id(0), scale)
    tl.store(codes + place, code, mask=inside)


def encoded_by_triton(values: Tensor, map: blockwise.Map) -> blockwise.Quantized:
    """What a kernel that holds `values` (1, N) makes of them."""
    blocks = -(-values.shape[1] // BLOCK)
    codes = torch.empty_like(values, dtype=torch.uint8)
    scale, minimum = values.new_full((2, 1, blocks), 7.0)
    thresholds = dynamic.thresholds(values.device)
    encode_kernel[(blocks,)](values, codes, scale, minimum, thresholds, values.shape[1], MAP=map, BLOCK=BLOCK)
    return blockwise.Quantized(codes, scale, minimum if map == "linear" else None)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("map", ["linear", "dynamic"])
@pytest.mark.parametrize("entries", [*ENTRIES, "halves", "constant", "nan"])
def test_a_triton_kernel_encodes_to_the_bits_of_the_reference(entries: int | str, map: blockwise.Map) -> None:
    special = {"halves": torch.arange(511.0)[None], "constant": torch.full((1, 3000), 0.3)}
    values = special[entries] if entries in special else values_of(1, 4096 if entries == "nan" else entries)
    values = values.to(DEVICE)
    if entries == "nan":
        values[0, 7] = float("nan")
    ours, theirs = encoded_by_triton(values, map), reference.quantize(values, map)
    finite = theirs.scale.isfinite().repeat_interleave(BLOCK, dim=1)[:, : values.shape[1]]
    assert finite.all() != (entries == "nan")
    difference = (ours.codes[finite].int() - theirs.codes[finite].int()).abs()
    # compiled, a number within a rounding of half-way may get the next code; the interpreter rounds as PyTorch
    allowed = values.numel() // 1000 if DEVICE == "cuda" else 0
    assert difference.max() <= 1 and difference.count_nonzero() <= allowed
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        assert (one is None and other is None) or torch.equal(one.nan_to_num(), other.nan_to_num())

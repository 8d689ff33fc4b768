"""Blockwise 8-bit quantisation: the paper's equation by brute force, exact blocks, and the Triton kernel's bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import blockwise
from kernels.blockwise import BLOCK, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_not_hidden(bad: float) -> None:
    values = values_of(1, 2 * BLOCK)
    values[0, 5] = bad
    restored = reference.dequantize(reference.quantize(values))
    assert restored[0, :BLOCK].isnan().all()
    assert restored[0, BLOCK:].isfinite().all()


@pytest.mark.parametrize("entries", ENTRIES)
def test_tensors_quantised_together_have_the_bits_they_have_alone(entries: int) -> None:
    values = values_of(3, entries)
    together = reference.quantize(values)
    for index in range(3):
        alone = reference.quantize(values[index : index + 1])
        assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, together, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("entries", [*ENTRIES, "halves", "constant", "nan"])
def test_triton_kernel_gives_the_bits_of_the_reference(entries: int | str) -> None:
    pytest.importorskip("triton")
    from kernels.blockwise import triton_kernel

    special = {"halves": torch.arange(511.0)[None], "constant": torch.full((2, 3000), 0.3)}
    values = special[entries] if entries in special else values_of(2, 4096 if entries == "nan" else entries)
    values = values.to(DEVICE)
    if entries == "nan":
        values[0, 7] = float("nan")
    ours, theirs = triton_kernel.quantize(values), reference.quantize(values)
    finite = theirs.minimum.isfinite().repeat_interleave(BLOCK, dim=1)[:, : values.shape[1]]
    assert torch.equal(ours.codes[finite], theirs.codes[finite])
    assert torch.equal(ours.scale.nan_to_num(), theirs.scale.nan_to_num())
    assert torch.equal(ours.minimum.nan_to_num(), theirs.minimum.nan_to_num())
    restored, expected = triton_kernel.dequantize(ours), reference.dequantize(theirs)
    assert torch.equal(restored[finite], expected[finite])
    assert restored[~finite].isnan().all()


def test_cpu_tensors_go_to_the_reference() -> None:
    assert blockwise.implementation(torch.device("cpu")) is reference


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.blockwise import triton_kernel as kernels
pointers = {"values": "*fp32", "codes": "*u8", "scales": "*fp32", "minima": "*fp32", "entries": "i32"}
for kernel, constants in ((kernels.quantize_kernel, {"BLOCK": 2048, "LEVELS": 255}),
                          (kernels.dequantize_kernel, {"BLOCK": 2048})):
    signature = {name: pointers.get(name, "constexpr") for name in kernel.arg_names}
    positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        built = triton.compile(ASTSource(kernel, signature, positions), target=target, options=options)
        assert built.asm["cubin"], (kernel, capability)
        assert "fma" not in built.asm["ptx"], (kernel, capability)
        print(built.name, capability)
"""


def test_triton_kernels_compile_for_a100_and_h100_without_fused_multiply_add(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(blockwise.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = ["quantize_kernel", "dequantize_kernel"]
    assert done.stdout.splitlines() == [f"{name} {capability}" for name in names for capability in (80, 90)]

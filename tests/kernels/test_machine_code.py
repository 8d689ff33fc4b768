"""The kernels compiled where there is no GPU, and their machine code: registers, spills, and how they load.

A multiprocessor has 65536 registers and room for 2048 threads, so that 64 registers a thread fill half of it. Loads are
counted in the program's text and as `compiling.MachineCode` says; sums, sizes and addresses that all threads load
alike are among the narrow ones, up to thirteen in a kernel of CAME.
"""

import importlib
import itertools
from typing import NamedTuple

import pytest
from compiling import CAPABILITIES, READABLE, Compiled, compile_ahead_of_time, tool_path

pytestmark = [pytest.mark.ahead_of_time, pytest.mark.timeout(1200)]  # a hundred programs are compiled
MODULES = (
    "kernels.came8bit.step_in_triton",
    "kernels.came8bit.step_on_shards_in_triton",
    "kernels.linear_attention.triton_kernel",
    "kernels.modulation.triton_kernel",
    "kernels.mix_feed_forward.triton_kernel",
)
KERNELS = sorted(
    {(name, build.kernel.__name__) for name in MODULES for build in importlib.import_module(name).ahead_of_time()}
)


class Limits(NamedTuple):
    """The most registers and bytes of local memory a thread, and the largest share of narrow loads."""

    registers: int = 64
    narrow: float = 0.5
    local_bytes: int = 0


FOR_PRODUCTS = "operands and sums of tensor cores, in three parts for float32, lie in registers"
FOR_SUMS = "reads one float of each sum that tiles left: under a hundredth of a step's bytes"
FOR_CHANNELS = "a thread holds one channel or two, with nine weights and eighteen cells of each"
EXCEPTIONS: dict[tuple[str, str, str], tuple[Limits, str]] = {
    ("statistics_kernel", "", ""): (Limits(narrow=0.8), FOR_SUMS),
    ("totals_kernel", "", ""): (Limits(narrow=1.0), FOR_SUMS),
    ("column_sums_kernel", "", ""): (Limits(narrow=1.0), FOR_SUMS),
    ("columns_kernel", "", ""): (Limits(narrow=0.8), FOR_SUMS),
    ("tiles_kernel", "PASS", "1"): (Limits(narrow=0.7), "reads gradients alone: two wide loads beside the common ones"),
    ("tiles_kernel", "MAP", "dynamic"): (
        Limits(narrow=0.6, local_bytes=56),
        "looks each code up in the map's 256 values, which Triton 3.6 (not 3.7) lays out anew and spills for",
    ),
    ("apply_kernel", "MAP", "dynamic"): (Limits(narrow=0.85), "compares each entry with eight of the map's thresholds"),
    ("key_value_kernel", "", ""): (Limits(registers=176), FOR_PRODUCTS),
    ("output_kernel", "", ""): (Limits(registers=128), FOR_PRODUCTS),
    ("query_gradient_kernel", "", ""): (Limits(registers=255), FOR_PRODUCTS),
    ("key_value_gradient_kernel", "", ""): (Limits(registers=176), FOR_PRODUCTS),
    ("forward_kernel", "", ""): (Limits(registers=128, narrow=1.0), FOR_CHANNELS),
    ("mixed_gradient_kernel", "", ""): (Limits(registers=128, narrow=1.0), FOR_CHANNELS),
    ("x_gradient_kernel", "", ""): (Limits(narrow=1.0), FOR_CHANNELS),
}
"""Limits of kernels, all or those with a constant of this value, that cannot keep the general ones, and why not."""


@pytest.mark.parametrize(
    ("module", "kernels", "shared_bytes"),
    [
        (MODULES[0], {"tiles_kernel", "statistics_kernel", "totals_kernel", "apply_kernel", "others_kernel"}, None),
        (
            MODULES[1],
            {
                *("tiles_kernel", "bounds_kernel", "apply_kernel", "others_kernel"),
                *("column_sums_kernel", "columns_kernel"),
            },
            None,
        ),
        (
            MODULES[2],
            {
                *("inverse_rms_kernel", "norm_gradient_kernel", "key_value_kernel"),
                *("output_kernel", "query_gradient_kernel", "key_value_gradient_kernel"),
            },
            99 * 1024,  # what the smallest of these GPUs have, sm_86 and sm_89
        ),
        (
            MODULES[3],
            {
                *("modulate_kernel", "modulate_gradient_kernel"),
                *("gated_residual_kernel", "gated_residual_gradient_kernel"),
            },
            None,
        ),
        # cells live in registers: shared memory would mean that the compiler moves them between threads
        (MODULES[4], {"forward_kernel", "mixed_gradient_kernel", "x_gradient_kernel"}, 0),
    ],
    ids=[name.removeprefix("kernels.") for name in MODULES],
)
def test_all_kernels_compile_for_a100_h100_and_b200(module: str, kernels: set[str], shared_bytes: int | None) -> None:
    compiled = read_module(module) if tools_are_there() else compile_ahead_of_time(module)
    assert {(one.kernel, one.capability) for one in compiled} == set(itertools.product(kernels, CAPABILITIES))
    assert shared_bytes is None or max(one.shared_bytes for one in compiled) <= shared_bytes


def limits_of(one: Compiled) -> Limits:
    """The limits of its kernel."""
    for (kernel, constant, value), (limits, _) in EXCEPTIONS.items():
        if one.kernel == kernel and one.constants.get(constant, "") == value:
            return limits
    return Limits()


def read_module(name: str) -> list[Compiled]:
    """A module's kernels with their machine code, or skip where this Triton has no tools to read it."""
    if not tools_are_there():
        pytest.skip("the machine code cannot be read: Triton has not brought CUDA's tools")
    return compile_ahead_of_time(name, read=True)


def tools_are_there() -> bool:
    """Whether Triton has brought the tools that read machine code."""
    try:
        return all(tool_path(tool) for tool in ("cuobjdump", "nvdisasm"))
    except RuntimeError:
        return False


@pytest.mark.parametrize("capability", READABLE)
@pytest.mark.parametrize(("module", "kernel"), KERNELS, ids=[kernel for _, kernel in KERNELS])
def test_a_kernel_keeps_to_its_registers_and_loads_wide(module: str, kernel: str, capability: int) -> None:
    builds = [one for one in read_module(module) if (one.kernel, one.capability) == (kernel, capability)]
    assert builds
    for one in builds:
        limits, what = limits_of(one), f"{one.kernel} {one.types} {one.constants}: {one.code}"
        assert one.code.local_bytes <= limits.local_bytes, what
        assert one.code.registers <= limits.registers, what
        assert one.code.narrow_loads <= limits.narrow * one.code.loads, what


def test_every_exception_is_of_a_kernel_that_there_is() -> None:
    assert {kernel for kernel, _, _ in EXCEPTIONS} <= {kernel for _, kernel in KERNELS}

"""Compiles the kernels that modules declare for GPUs that need not be there, in one process outside the interpreter.

Compiling is not running: it shows that a kernel is valid for an architecture, not that it computes the right thing.
What it takes of a multiprocessor and how it loads is read from its machine code, with the tools that Triton brings.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CAPABILITIES = (80, 90, 100)
READABLE = (80, 90)
CUBIN_MAGIC = b"\x7fELF"
WIDE = {"64", "128", "256"}
"""Bits a load instruction brings to a thread, as its name says, if more than 32."""


class MachineCode(NamedTuple):
    """What a compiled kernel takes of each thread, and the instructions in its text that load from global memory.

    `local_bytes` is memory for what registers do not hold. A load is narrow if it brings a thread four bytes or fewer:
    one number in float32, two in bfloat16, four codes. Asynchronous copies to shared memory count as loads. What all
    threads load alike (a size, an address, a total) counts too: the code does not tell it apart.
    """

    registers: int
    local_bytes: int
    loads: int
    narrow_loads: int


class Compiled(NamedTuple):
    """A kernel of a module compiled for an architecture, with the bytes of shared memory that a program takes."""

    module: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, str]
    capability: int
    shared_bytes: int
    code: MachineCode | None


@lru_cache
def compile_ahead_of_time(module: str, read: bool = False) -> list[Compiled]:
    """Every build of the module's `ahead_of_time()` for every architecture. Raises AssertionError where one fails.

    If `read`, those of READABLE come with what their machine code says.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, __file__, module, *(["--read"] if read else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [Compiled(*row) for row in json.loads(done.stdout.splitlines()[-1])]
    assert {one.module for one in compiled} == {module}
    return [one._replace(code=one.code and MachineCode(*one.code)) for one in compiled]


def compile_module(name: str, read: bool) -> list[Compiled]:
    """Compile in this process, which must not interpret Triton."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    compiled = []
    for build in importlib.import_module(name).ahead_of_time():
        names = build.kernel.arg_names
        assert set(names) == set(build.types) | set(build.constants), (build.kernel, names)
        signature = {argument: build.types.get(argument, "constexpr") for argument in names}
        constants = {(names.index(argument),): value for argument, value in build.constants.items()}
        hints = {(names.index(argument),): [["tt.divisibility", 16]] for argument in build.divisible}
        source = ASTSource(build.kernel, signature, constants, hints)
        for capability in CAPABILITIES:
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(build.options))
            kernel, cubin = build.kernel.__name__, built.asm["cubin"]
            assert cubin.startswith(CUBIN_MAGIC), (name, kernel, capability)
            shown = {argument: str(value) for argument, value in build.constants.items()}
            code = machine_code(cubin) if read and capability in READABLE else None
            row = (name, kernel, dict(build.types), shown, capability, built.metadata.shared, code)
            compiled.append(Compiled(*row))
    return compiled


def machine_code(cubin: bytes) -> MachineCode:
    """Read a compiled kernel with the tools of CUDA that Triton brings."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        text = _run("nvdisasm", "--print-code", "--no-dataflow", file.name)
    # an instruction's name with what modifies it; a predicate may stand before it
    loads = re.findall(r"\b(?:LDG|LDGSTS)\.[\w.]+", text)
    narrow = [load for load in loads if not WIDE & set(load.split("."))]
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return MachineCode(registers, stack + local, len(loads), len(narrow))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([tool_path(tool), *arguments], check=True, capture_output=True, text=True).stdout


def tool_path(name: str) -> str:
    """A tool of CUDA, of Triton's own or where its settings say. Raises RuntimeError if it is not there."""
    from triton import knobs

    return getattr(knobs.nvidia, name).path


if __name__ == "__main__":
    print(json.dumps(compile_module(sys.argv[1], "--read" in sys.argv)))

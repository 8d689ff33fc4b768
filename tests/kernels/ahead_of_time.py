"""Compiles the kernels that modules declare for GPUs that need not be there, in one process outside the interpreter.

Compiling is not running: it shows that a kernel is valid for an architecture, not that it computes the right thing.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CAPABILITIES = (80, 90, 100)
CUBIN_MAGIC = b"\x7fELF"


class Compiled(NamedTuple):
    """A kernel of a module compiled for an architecture, with the bytes of shared memory that a program takes."""

    module: str
    kernel: str
    types: dict[str, str]
    capability: int
    shared_bytes: int


def compile_ahead_of_time(*modules: str) -> list[Compiled]:
    """Every build of the modules' `ahead_of_time()` for every architecture. Raises AssertionError where one fails."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, __file__, *modules]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [Compiled(*row) for row in json.loads(done.stdout.splitlines()[-1])]
    assert {one.module for one in compiled} == set(modules)
    return compiled


def compile_module(name: str) -> list[Compiled]:
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
            kernel = build.kernel.__name__
            assert built.asm["cubin"].startswith(CUBIN_MAGIC), (name, kernel, capability)
            compiled.append(Compiled(name, kernel, dict(build.types), capability, built.metadata.shared))
    return compiled


if __name__ == "__main__":
    print(json.dumps([one for module in sys.argv[1:] for one in compile_module(module)]))

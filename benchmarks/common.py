"""What every benchmark shares: its command line, hardware and versions, a clock, and the file that results are kept in.

The benchmarks run from a clone in which nothing is installed but PyTorch and what PyTorch needs: the project is put on
the path here, and a package that a benchmark compares with may be absent.
"""

import importlib
import json
import os
import platform
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# as stages have it; cuBLAS reads it once, when it is first used
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

RESULTS = HERE / "results"
PACKAGES = tuple("torch triton transformers accelerate diffusers bitsandbytes came-pytorch prefect mlflow".split())
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def command_line(doc: str | None, rounds: int = 1) -> ArgumentParser:
    """The options that benchmarks share; add a benchmark's own, then call `start`."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side (default: {rounds})")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: to try the script")
    return parser


def start(parser: ArgumentParser) -> Namespace:
    """Read the command line and print what the benchmark runs on and with.

    `arguments.size` is the name of the sizes to measure: `tiny`, or the device's, `cuda` or `cpu`.
    """
    arguments = parser.parse_args()
    arguments.size = "tiny" if arguments.tiny else DEVICE
    arguments.rounds = 1 if arguments.tiny else arguments.rounds
    arguments.out = arguments.out or (Path(tempfile.mkdtemp()) if arguments.tiny else RESULTS)
    torch.set_num_threads(arguments.threads)
    print(hardware(), versions(), sep="\n", flush=True)
    return arguments


def hardware() -> dict[str, Any]:
    """The machine: the GPU and its memory, or the processor with the threads that torch uses."""
    if DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return {"device": properties.name, "memory_GiB": round(properties.total_memory / 2**30, 1)}
    return {"device": f"{processor()} CPU", "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str | None]:
    """Python, CUDA and the packages that the figures depend on; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **found}


def peer(module: str) -> ModuleType | None:
    """A module to compare with, or None, with a printed line that says why it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"{module} is left out: {error}", flush=True)
        return None


def reason_of(error: Exception) -> str:
    """An exception as one line, of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def compiled(function: Callable[..., Any], tiny: bool) -> Callable[..., Any]:
    """`function` under torch.compile; at tiny sizes traced alone, since generating code would take minutes."""
    return torch.compile(function, dynamic=False, backend="aot_eager" if tiny else "inductor")


def timed(function: Callable[[], object], rounds: int = 20) -> float:
    """Least seconds of one call, of `rounds` calls after three that warm up: of the wall's clock, GPU work included."""
    return min(timed_in_turns({"": function}, rounds).values())


def timed_in_turns(functions: Mapping[str, Callable[[], object]], rounds: int = 20) -> dict[str, float]:
    """As `timed`, of functions that take turns, so that another program's load on the machine falls on all of them.

    Each runs twice in its turn, and the second time counts: the first brings its data back into the caches. One that
    fails is named in a printed line, and has no time.
    """
    least = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds + 1):
        for name in list(least):
            seconds = attempt(name, functions[name], warm_up=1 if turn else 3)
            if seconds is None:
                del least[name]
            elif turn:
                least[name] = min(least[name], seconds)
    return least


def attempt(name: str, function: Callable[[], object], warm_up: int) -> float | None:
    """Seconds of a call after others that warm up; None, and a printed line that says why, if one fails."""
    try:
        for _ in range(warm_up):
            function()
        return seconds_of(function)
    except Exception as error:
        print(f"{name} fails while it is timed: {reason_of(error)}", flush=True)
        torch.cuda.empty_cache()
        return None


def synchronize() -> None:
    """Wait until the GPU, if there is one, has nothing left to do."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def distance(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Relative L2 distance of two lists of tensors, in float64."""
    error = sum((one.double() - other.double()).square().sum() for one, other in zip(found, right, strict=True))
    return (error / sum(other.double().square().sum() for other in right)).sqrt().item()


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds of one call. On a GPU they lie between two events on its stream, recorded before and after the call."""
    if DEVICE == "cpu":
        started = time.perf_counter()
        function()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


COPY_BYTES = {"cuda": 2**30, "cpu": 2**28, "tiny": 2**20}


def copy_bandwidth(size: str) -> float:
    """Bytes a second of a large copy, read and written: what a pass over memory can reach at most."""
    source = torch.randn(COPY_BYTES[size] // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), rounds=10)


FAILED_WHILE_TIMED = "fails while it is timed"


class Results:
    """The rows of a benchmark in `<folder>/<name>-<cpu or cuda>.json`, with hardware and versions.

    The file is written anew with each row, so that a run that is stopped leaves all that it has measured.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.path = folder / f"{name}-{DEVICE}.json"
        self.rows: list[Mapping[str, Any]] = []
        self._about = {"benchmark": name, "hardware": hardware(), "versions": versions()}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Keep rows; they are on disk when this returns."""
        self.rows += rows
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**self._about, "rows": self.rows}, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path)

"""What every benchmark shares: hardware and versions, a clock, and the file that a result is kept in."""

import json
import os
import platform
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "diffusers", "bitsandbytes", "came-pytorch", "prefect", "mlflow")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def command_line(doc: str | None, rounds: int) -> ArgumentParser:
    """The options that benchmarks share, `--rounds` and `--threads`; add a benchmark's own, then `start`."""
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side (default: {rounds})")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    return parser


def start(parser: ArgumentParser) -> Namespace:
    """Read the command line and print what the benchmark runs on and with."""
    arguments = parser.parse_args()
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
    """Python, CUDA and the packages that the figures depend on, None for one that is not installed."""
    found = {package: installed(package) for package in PACKAGES}
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **found}


def installed(package: str) -> str | None:
    """The version of `package`, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def timed(function: Callable[[], object], rounds: int = 20) -> float:
    """Least seconds of one call, of `rounds` calls after three that warm up: of the wall's clock, GPU work included."""
    return min(timed_in_turns({"": function}, rounds).values())


def timed_in_turns(functions: Mapping[str, Callable[[], object]], rounds: int = 20) -> dict[str, float]:
    """As `timed`, of functions that take turns, so that another program's load on the machine falls on all of them.

    Each runs twice in its turn, and the second time counts: the first brings its data back into the caches.
    """
    for function in functions.values():
        for _ in range(3):
            function()
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            least[name] = min(least[name], seconds_of(function))
    return least


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds of one call; on a GPU by its own events, so that launching counts only where work waits for it."""
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


def write_result(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Keep `rows` with hardware and versions as `results/<name>-<cpu or cuda>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{DEVICE}.json"
    content = {"benchmark": name, "hardware": hardware(), "versions": versions(), "rows": list(rows)}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path

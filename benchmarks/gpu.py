"""Every benchmark's part for a GPU, one after the other, in under ten minutes and without a network.

    python benchmarks/gpu.py

Each writes `results/<name>-cuda.json`: add these files to the repository with the tables that are printed. A benchmark
that fails or runs out of its time is named at the end, and the others are kept. Needs a CUDA device of 40 GB or more.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch
from common import hardware, versions

HERE = Path(__file__).parent
# seconds that each may take, ten minutes in all; a first call compiles kernels
LIMITS = {
    "optimizer_step": 100,
    "linear_attention": 90,
    "modulation": 60,
    "mix_feed_forward": 90,
    "network": 160,
    "training_memory": 90,
}


def run(name: str, limit: int) -> str | None:
    """Run one benchmark with its output shown; why it failed, if it did."""
    started = time.monotonic()
    try:
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"took more than its {limit} s"
    print(f"\n{name}: {time.monotonic() - started:.0f} s\n", flush=True)
    return f"exit status {done.returncode}" if done.returncode else None


def main() -> int:
    """Run all; returns 0 if none failed, 2 where there is no GPU."""
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device: run the single benchmarks for the CPU", file=sys.stderr)
        return 2
    print(hardware(), versions(), flush=True)
    failed = {name: reason for name, limit in LIMITS.items() if (reason := run(name, limit))}
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

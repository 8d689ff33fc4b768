"""The GPU day: all that only a GPU can show, in about eight minutes and without a network.

    python benchmarks/gpu.py [--minutes 8] [--parts network training_loop] [--out FOLDER]

Runs from a clone, with nothing installed but torch, triton, transformers, accelerate, safetensors, numpy, scipy,
pillow, pytest and pytest-xdist; a peer that is absent has a row that says so. The most valuable figures come first.
Each part is a process of its own with a limit of its own. Its rows go to `<out>/<part>-cuda.json` the moment they
exist, and all that have ended are in `<out>/gpu-cuda.json`. A part that fails or runs out of time is named, and the
others go on. In the end one table compares the figures with their goals; `--table` prints it of the files that are
there. What no time was left for is run by its name: `--parts linear_attention`.

`--tiny` runs every part at the smallest sizes, also without a GPU: to try the script, not to measure.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LEAST_SECONDS = 15  # that a part is begun with
TINY_SECONDS = 900  # that a part may take at the smallest sizes: no machine is that slow


@dataclass(frozen=True)
class Part:
    """A benchmark with the seconds that it may take; compiling kernels is in them."""

    name: str
    seconds: int
    arguments: tuple[str, ...] = ()
    script: str = ""  # where it is not `<name>.py`


PARTS = (
    Part("first_step", 60),
    Part("kernel_tests", 100),
    Part("optimizer_step", 70),
    Part("network", 100, ("--rounds", "5")),
    Part("training_loop", 100),
    Part("training_memory", 70),
    Part("stage_memory", 100),
    Part("checkpoint_stall", 100),
    Part("stages", 100),
    Part("network_compiled", 120, ("--compiled", "--rounds", "5"), "network"),
    Part("linear_attention", 70),
    Part("mix_feed_forward", 70),
    Part("modulation", 70),
)


@dataclass(frozen=True)
class Outcome:
    """How a part ended: `problem` is empty if well."""

    part: str
    seconds: float
    problem: str


def run(part: Part, limit: float, options: Sequence[str]) -> Outcome:
    """Run a part with its output shown. At its limit it is killed with all processes that it began."""
    started = time.monotonic()
    command = [sys.executable, str(HERE / f"{part.script or part.name}.py"), *part.arguments, *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        try:
            code = process.wait(limit)
            problem = f"exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"ran out of its {limit:.0f} s"
        finally:
            kill(process)
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if problem and said:
        print(*said[-15:], sep="\n", file=sys.stderr, flush=True)
        problem += f": {said[-1][:200]}"
    return Outcome(part.name, time.monotonic() - started, problem)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it began and left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended
    process.wait()


def run_all(parts: Sequence[Part], minutes: float, options: Sequence[str], tiny: bool) -> Iterator[Outcome]:
    """Run parts in their order until the time is over; yields how each ended."""
    end = time.monotonic() + 60 * minutes
    for part in parts:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            yield Outcome(part.name, 0.0, "not begun: no time was left")
            continue
        print(f"\n=== {part.name}", flush=True)
        yield run(part, TINY_SECONDS if tiny else min(part.seconds, left), options)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="that are run (default: all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: to try the script")
    parser.add_argument("--table", action="store_true", help="run nothing: compare the results with the goals")
    return parser


def main() -> int:
    """Run the parts and print the table; returns 0 if none failed, 1 if one did, 2 where there is no GPU."""
    options = arguments().parse_args()
    from common import DEVICE, RESULTS, Results
    from goals import read_rows, table

    folder = options.out or (Path(tempfile.mkdtemp()) if options.tiny else RESULTS)
    if options.table:
        print(table(folder, "cuda"))
        return 0
    if DEVICE == "cpu" and not options.tiny:
        print("benchmarks/gpu.py: torch sees no CUDA device: --tiny tries the script without one", file=sys.stderr)
        return 2
    chosen = [part for part in PARTS if part.name in options.parts]
    minutes = len(chosen) * TINY_SECONDS / 60 if options.tiny else options.minutes
    shared = ["--out", str(folder), *(["--tiny"] if options.tiny else [])]
    for name in ("gpu", *(part.name for part in chosen)):  # what an earlier day left is not this day's
        (folder / f"{name}-{DEVICE}.json").unlink(missing_ok=True)
    results = Results("gpu", folder)
    for outcome in run_all(chosen, minutes, shared, options.tiny):
        results.add({**vars(outcome), "rows": read_rows(folder, DEVICE).get(outcome.part, [])})
    print(f"\n{table(folder, DEVICE)}\n")
    for row in results.rows:
        print(f"{row['part']}: {row['seconds']:.0f} s {row['problem']}", flush=True)
    return 1 if any(row["problem"] for row in results.rows) else 0


if __name__ == "__main__":
    sys.exit(main())

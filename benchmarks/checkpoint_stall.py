"""What a checkpoint costs the training that goes on beside it, against the bare copy of its bytes.

    python benchmarks/checkpoint_stall.py [--steps 20]

The network and its training are those of `training_loop.py`, on a GPU the 1.6B at 512 pixels. The first checkpoint
takes the pinned memory, and is not measured.

* `bytes`: of the state, which are copied into the memory of the host.
* `copy_s`: seconds of copying as many bytes from the device into the same memory.
* `stall_s`: how much longer `--steps` steps take when the state is saved before them, while a thread writes it.
* `stall_of_copy`: the one over the other. The goal is at most 1.
* `write_s`: seconds until the state is in its place.
"""

import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from common import DEVICE, Results, command_line, start, synchronize
from synthetic import write_encodings
from training_loop import SIZES, WARM_UP, fitting_trainer

from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.training_loop import Trainer

PIECE = 2**28  # bytes of the device's memory that are copied from, again and again


def seconds_of_steps(trainer: Trainer, steps: int, save: bool) -> float:
    """Seconds of so many steps, with a checkpoint before them or none."""
    synchronize()
    begun = time.perf_counter()
    if save:
        trainer.save()
    for _ in range(steps):
        trainer.update()
    synchronize()
    return time.perf_counter() - begun


def copy_seconds(trainer: Trainer) -> tuple[int, float]:
    """The bytes of a snapshot, and the seconds of filling its memory from the device."""
    pieces = [piece for buffer in trainer.states.snapshot.buffers.values() for piece in buffer.split(PIECE)]
    source = torch.zeros(PIECE, dtype=torch.uint8, device=DEVICE)
    synchronize()
    begun = time.perf_counter()
    for piece in pieces:
        piece.copy_(source[: len(piece)], non_blocking=True)
    synchronize()
    return sum(map(len, pieces)), time.perf_counter() - begun


def measure(trainer: Trainer, steps: int) -> dict[str, Any]:
    """The figures of a checkpoint."""
    trainer.save()
    trainer.states.wait()
    for _ in range(WARM_UP):
        trainer.update()
    trainer.read_steps()
    plain = seconds_of_steps(trainer, steps, save=False)
    trainer.read_steps()
    begun = time.perf_counter()
    stall = seconds_of_steps(trainer, steps, save=True) - plain
    trainer.states.wait()
    written = time.perf_counter() - begun
    size, copy = copy_seconds(trainer)
    figures = {"bytes": size, "copy_s": copy, "stall_s": stall, "stall_of_copy": stall / copy}
    return figures | {"write_s": written, "plain_s": plain}


def main() -> None:
    """Print the row, and keep it."""
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=20, help="beside which a state is written (default: 20)")
    arguments = start(parser)
    steps = 2 if arguments.tiny else arguments.steps
    sizes, changes, batches = SIZES[arguments.size]
    results = Results("checkpoint_stall", arguments.out)
    with tempfile.TemporaryDirectory() as name, closing(open_spool(Path(name), "pretrain", tags={})) as spool:
        write_encodings(Path(name, "encoded"), sizes)
        trainer = fitting_trainer(sizes, changes, batches, Path(name), Tracker(spool))
        about = {"batch": trainer.training.batch_size, "steps": steps}
        results.add({"run": "a checkpoint beside the training", **about, **measure(trainer, steps)})
        print(results.rows[-1], flush=True)
        trainer.batches.close()
    print(results.path)


if __name__ == "__main__":
    main()

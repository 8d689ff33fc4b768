"""The input pipeline: reading a sample of the paper's shapes, and a step whose device is a sleep.

    python benchmarks/input_pipeline.py [--rounds 9] [--steps 32] [--batch 8]

The encodings are random numbers in the paper's shapes, on this machine's disk: latents of 32x16x16, and texts of 1 to
300 tokens of 2304 channels, 150 in the mean. Eight of them in 50 ms are about what an H100 trains the 1.6B on, at 43 %
of its peak. The files have just been written, so they are read from the memory of the system.

The row `one process` is of one process without workers:

* `ms_a_sample_drawn`, `cpu_ms_a_sample_drawn`: milliseconds for a sample from the shards to the block of bytes that a
  worker sends (`draw_batch`, `packed`), by the clock and of the CPU. Other programs lengthen the first alone.
* `ms_a_sample_padded`, `cpu_ms_a_sample_padded`: the same from there to what the network takes (`noised`), which a GPU
  does in training.
* `bytes_a_sample`: what a worker hands over for a sample.

The other rows are of workers, and have the median of the rounds, with the least and the largest of them. Their device
is a thread that sleeps. As a GPU does, it works beside the host, which asks for the next batch meanwhile and is at most
one step ahead.

* `data_ms`: milliseconds of a micro-batch that is asked for as soon as the one before has come.
* `device_ms`: the sleep of 50 ms as it was measured; on a busy machine it is longer.
* `step_ms`: a step, in which a micro-batch is taken and the device sleeps.
* `step_of_larger`: `step_ms` over the larger of `data_ms` and `device_ms` of the same round. The goal is at most 1.05.
* `load`: the system's load average of one minute, which says how many others compute.
* `host_cpu_ms`: CPU time of the training process itself in a step.
* `waiting_...`: the same of a host that waits for the device in each step, and only then asks for the next batch.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from common import Results, command_line, start
from synthetic import Encodings, write_encodings

from tasks.data.encoded_samples import EncodedDataset
from tasks.params.network_params import Diffusion
from tasks.training.batch_loader import BatchLoader, MicroBatches, PackedBatch, packed
from tasks.training.training_batch import draw_batch

DEVICE_SECONDS = 0.05
WORKERS = (0, 1, 2)
DIFFUSION = Diffusion(flow_shift=3.0, logit_mean=0.0, logit_std=1.0, caption_dropout=0.1)
PAPER = Encodings(32, 16, 300, 2304, 256, 8, fewest_text_tokens=1)
TINY = Encodings(4, 3, 5, 16, 16, 2)

Figures = dict[str, float]


def one_process(dataset: EncodedDataset, size: int, steps: int) -> Figures:
    """Milliseconds of a sample in this process until it could be sent, and then until it is padded; and its bytes."""
    clocks: list[tuple[float, float]] = []

    def note() -> None:
        clocks.append((time.perf_counter(), time.process_time()))

    sent = 0
    for step in range(steps):
        note()
        drawn = packed(draw_batch(dataset, DIFFUSION, 0, step, size, np.arange(size)))
        assert isinstance(drawn, PackedBatch)
        note()
        drawn.unpacked().noised(dataset.null_text, "diffusers")
        note()
        sent += drawn.data.nbytes
    begun, middle, ended = (np.array(clocks[place::3]) for place in range(3))
    drawing, padding = (1e3 * np.median(part, axis=0) / size for part in (middle - begun, ended - middle))
    return {
        "ms_a_sample_drawn": float(drawing[0]),
        "cpu_ms_a_sample_drawn": float(drawing[1]),
        "ms_a_sample_padded": float(padding[0]),
        "cpu_ms_a_sample_padded": float(padding[1]),
        "bytes_a_sample": sent / steps / size,
    }


def one_round(dataset: EncodedDataset, size: int, workers: int, steps: int) -> Figures:
    """Milliseconds of a micro-batch alone, and of a step beside whose host the device sleeps, or which waits for it."""
    data = measure(dataset, size, workers, steps, 0.0)["step"]
    figures = {"data_ms": 1e3 * data, "load": os.getloadavg()[0]}
    for prefix, ahead in (("", 1), ("waiting_", 0)):
        found = measure(dataset, size, workers, steps, DEVICE_SECONDS, ahead)
        figures |= {f"{prefix}{name}_ms": 1e3 * seconds for name, seconds in found.items()}
        figures[f"{prefix}step_of_larger"] = found["step"] / max(data, found["device"])
    return figures


def measure(
    dataset: EncodedDataset, size: int, workers: int, steps: int, device_seconds: float, ahead: int = 0
) -> Figures:
    """Mean seconds of a step, of the device's sleep in it, and of this process's CPU. The host is `ahead` steps.

    The workers have begun before the first step, and have read the batches that they may be ahead by.
    """
    rows = np.arange(size)[None]
    loader = BatchLoader(MicroBatches(dataset, DIFFUSION, 0, size, rows), "diffusers", workers, "cpu")
    loader.fetch(0, 0)
    time.sleep(device_seconds)
    begun, host, sleeps = time.perf_counter(), time.process_time(), list[Future[float]]()
    with ThreadPoolExecutor(1) as device:
        for step in range(1, steps + 1):
            loader.fetch(step, 0)
            if device_seconds:
                sleeps.append(device.submit(sleep, device_seconds))
                wait(sleeps[: len(sleeps) - ahead])
    seconds, host = time.perf_counter() - begun, time.process_time() - host
    loader.close()
    slept = sum(one.result() for one in sleeps)
    return {"step": seconds / steps, "device": slept / steps, "host_cpu": host / steps}


def sleep(seconds: float) -> float:
    """Sleep, and say how long it was."""
    begun = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - begun


def row_of(workers: int, size: int, rounds: Sequence[Figures]) -> dict[str, Any]:
    """The median of each figure over the rounds, and the least and the largest."""
    row: dict[str, Any] = {"run": f"{workers} workers", "batch": size, "rounds": len(rounds)}
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        row |= {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}
    return row


def main() -> None:
    """Print a row for each number of workers, and keep them. The numbers of workers take turns."""
    parser = command_line(__doc__, rounds=9)
    parser.add_argument("--steps", type=int, default=32, help="measured steps of a round (default: 32, one epoch)")
    parser.add_argument("--batch", type=int, default=8, help="samples of a micro-batch (default: 8)")
    arguments = start(parser)
    steps = 3 if arguments.tiny else arguments.steps
    sizes, batch = (TINY, 2) if arguments.tiny else (PAPER, arguments.batch)
    results = Results("input_pipeline", arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        write_encodings(Path(folder, "encoded"), sizes)
        dataset = EncodedDataset(Path(folder, "encoded"), "train")
        results.add({"run": "one process", "batch": batch} | one_process(dataset, batch, steps))
        print(results.rows[-1], flush=True)
        turns: list[dict[int, Figures]] = []
        for _ in range(arguments.rounds):
            turns.append({workers: one_round(dataset, batch, workers, steps) for workers in WORKERS})
            rows = [row_of(workers, batch, [turn[workers] for turn in turns]) for workers in WORKERS]
            results.rows[1:] = []
            results.add(*rows)  # a run that is stopped leaves the rounds that it has measured
    for row in results.rows[1:]:
        print(row, flush=True)
    print(results.path)


if __name__ == "__main__":
    main()

"""The input pipeline: reading a sample of the paper's shapes, and a step whose device is a sleep.

    python benchmarks/input_pipeline.py [--steps 40]

The encodings are random numbers in the paper's shapes: latents of 32x16x16, texts of 225 tokens on average of 2304
channels, on this machine's disk.

* `ms_a_sample_drawn`: milliseconds of one process for a sample, from the shards to what is handed over (`draw_batch`).
* `ms_a_sample_padded`: those from there to what the network takes, on the CPU (`noised`).
* `bytes_a_sample`: what is handed over for a sample.
* `step_of_larger`: a step of a device that sleeps 50 ms, over the larger of 50 ms and `data_ms`, the time in which the
  workers alone have a micro-batch ready. The goal is at most 1.05, where the workers have CPU cores of their own.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from common import Results, command_line, start
from synthetic import Encodings, write_encodings

from tasks.data.encoded_samples import EncodedDataset
from tasks.params.network_params import Diffusion
from tasks.training.batch_loader import BatchLoader, MicroBatches
from tasks.training.training_batch import draw_batch

DEVICE_SECONDS = 0.05
DIFFUSION = Diffusion(flow_shift=3.0, logit_mean=0.0, logit_std=1.0, caption_dropout=0.1)
PAPER = Encodings(32, 16, 300, 2304, 256, 8)
TINY = Encodings(4, 3, 5, 16, 16, 2)


def seconds_a_batch(dataset: EncodedDataset, size: int, steps: int) -> tuple[float, float, int]:
    """Seconds to draw a micro-batch in this process, seconds to pad it, and its bytes."""
    drawing = padding = 0.0
    for step in range(steps):
        begun = time.perf_counter()
        drawn = draw_batch(dataset, DIFFUSION, 0, step, size, np.arange(size))
        middle = time.perf_counter()
        drawn.noised(dataset.null_text, "diffusers")
        drawing, padding = drawing + middle - begun, padding + time.perf_counter() - middle
    tensors = (*drawn.stored, *drawn[1:])
    return drawing / steps, padding / steps, sum(tensor.nbytes for tensor in tensors)


def seconds_a_step(dataset: EncodedDataset, size: int, workers: int, steps: int, device_seconds: float) -> float:
    """Seconds of a step whose device sleeps; the workers have begun before the first."""
    rows = np.arange(size)[None]
    loader = BatchLoader(MicroBatches(dataset, DIFFUSION, 0, size, rows), "diffusers", workers, "cpu")
    loader.fetch(0, 0)
    begun = time.perf_counter()
    for step in range(1, steps + 1):
        loader.fetch(step, 0)
        time.sleep(device_seconds)
    seconds = time.perf_counter() - begun
    loader.close()
    return seconds / steps


def main() -> None:
    """Print a row for each number of workers, and keep them."""
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=40, help="measured steps (default: 40)")
    parser.add_argument("--batch", type=int, default=8, help="samples of a micro-batch (default: 8)")
    arguments = start(parser)
    steps = 3 if arguments.tiny else arguments.steps
    sizes, batch = (TINY, 2) if arguments.tiny else (PAPER, arguments.batch)
    results = Results("input_pipeline", arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        write_encodings(Path(folder, "encoded"), sizes)
        dataset = EncodedDataset(Path(folder, "encoded"), "train")
        drawing, padding, sent = seconds_a_batch(dataset, batch, steps)
        about = {
            "batch": batch,
            "ms_a_sample_drawn": 1e3 * drawing / batch,
            "ms_a_sample_padded": 1e3 * padding / batch,
        }
        results.add(row := {"run": "one process", **about, "bytes_a_sample": sent / batch})
        print(row, flush=True)
        for workers in (0, 1, 2):
            alone = seconds_a_step(dataset, batch, workers, steps, 0.0)
            step = seconds_a_step(dataset, batch, workers, steps, DEVICE_SECONDS)
            row = {"run": f"{workers} workers", "batch": batch, "data_ms": 1e3 * alone, "step_ms": 1e3 * step}
            results.add(row | {"step_of_larger": step / max(alone, DEVICE_SECONDS)})
            print(row, step / max(alone, DEVICE_SECONDS), flush=True)
    print(results.path)


if __name__ == "__main__":
    main()

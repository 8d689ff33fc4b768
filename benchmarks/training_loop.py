"""The real training loop on synthetic encodings: samples a second, MFU, waiting for data, host synchronisations.

    python benchmarks/training_loop.py [--steps 20]

On a GPU it trains the published 1.6B at 512 pixels with 8-bit CAME under bfloat16 autocast, with an average of the
weights, at the largest micro-batch of 32, 16, 8 and 4 that fits; on the CPU a small network. Each row is a run of
`--steps` steps of `tasks.training.training_loop.Trainer` after three that warm up.

* `mfu`: operations of forward and backward passes (`model.network_flops`) over the seconds, as a share of what
the data sheet of the GPU says it can do in bfloat16; `mfu_of_measured` the same of a large matrix product, measured
here.
* `waits_for_data`: share of the time in which the GPU has nothing to do because the next batch is not read and
  copied. One event goes on the GPU's stream before the reading and one behind the copy. The time between them is that
  in which the GPU had no other work.
* `synchronisations`, `launches`: calls of the host that wait for the GPU, and kernels, in one step, by the profiler.
* `busy`: share of a step in which the GPU runs kernels, by the profiler's times of these.

The row `memory filled` has torch fill all new memory, as its deterministic mode does unless it is told not to.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic
from accelerate.state import AcceleratorState
from common import DEVICE, PROJECT, Results, command_line, start, synchronize, timed
from synthetic import Encodings, write_encodings
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from model.network import Sana
from model.network_flops import training_flops
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, build_params, read_yaml
from tasks.runtime.context import Context
from tasks.runtime.torch_setup import configure_torch
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.batch_loader import BatchLoader
from tasks.training.device_peaks import peak_flops
from tasks.training.network_config import network_config
from tasks.training.training_batch import NoisedBatch
from tasks.training.training_loop import LOG_EVERY, Trainer

WARM_UP = 3
WAITING = ("cudaStreamSynchronize", "cudaEventSynchronize")

SIZES: dict[str, tuple[Encodings, dict[str, Any], list[int]]] = {
    "cuda": (
        Encodings(32, 16, 300, 2304, 128, 8),
        {"network.hidden_size": 2240, "network.cross_heads": 20, "pretrain.depth": 20, "compute.threads": 8}
        | {"compute.data_workers": 4},
        [32, 16, 8, 4],
    ),
    "cpu": (Encodings(32, 4, 12, 128, 128, 8), {"pretrain.depth": 8, "compute.threads": 1}, [64]),
    "tiny": (
        Encodings(4, 3, 5, 16, 8, 2),
        {"network.hidden_size": 32, "network.cross_heads": 2, "pretrain.depth": 1, "compute.threads": 1},
        [4],
    ),
}


def params_of(changes: dict[str, Any], batch: int) -> Params:
    """The default's params with the benchmark's sizes, one micro-batch a step."""
    common = {
        "compute.dtype": "bfloat16",
        "compute.device": DEVICE,
        "pretrain.batch_size": batch,
        "pretrain.grad_accumulation": 1,
        "pretrain.optimizer": "came8bit",
    }
    return build_params(apply_overrides(read_yaml(PROJECT / PARAMS_FILE), common | changes, __file__), __file__)


def make_trainer(params: Params, sizes: Encodings, folder: Path, tracker: Tracker) -> Trainer:
    """A trainer of random weights over the encodings in `folder`."""
    device = configure_torch(params, params.compute.threads)
    context = Context("pretrain", params, folder / "out", folder / "state", tracker, device, params.compute.threads)
    config = network_config(params.network, params.pretrain.depth, sizes.channels, sizes.caption_channels)
    torch.manual_seed(0)
    with torch.device(device):
        network = Sana(config)
    return Trainer(context, network, folder / "encoded", params.pretrain)


class DataClock:
    """Seconds in which the GPU waited for a batch to be read and copied to it; on the CPU the seconds that it took."""

    def __init__(self) -> None:
        self._spans: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time every micro-batch that the loop asks for meanwhile."""
        take = BatchLoader.micro_batch

        def timed_take(loader: BatchLoader, step: int, part: int) -> NoisedBatch:
            begun = mark()
            batch = take(loader, step, part)
            self._spans.append((begun, mark()))
            return batch

        BatchLoader.micro_batch = timed_take
        try:
            yield
        finally:
            BatchLoader.micro_batch = take

    def seconds(self) -> float:
        """The sum over all batches."""
        if DEVICE == "cpu":
            return sum(end - begin for begin, end in self._spans)
        return sum(begin.elapsed_time(end) for begin, end in self._spans) / 1e3


def mark() -> Any:
    """Now: on a GPU an event on its stream, whose time is when the work before it is done."""
    if DEVICE == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def measure(trainer: Trainer, steps: int, tokens: int, text_tokens: int, product: float) -> dict[str, Any]:
    """The figures of `steps` steps; `product` is the measured speed of a matrix product, operations a second."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        trainer.update()
    clock = DataClock()
    synchronize()
    started = time.perf_counter()
    with clock.running():
        for _ in range(steps):
            trainer.update()
            if trainer.step % LOG_EVERY == 0:
                trainer.read_steps()
    synchronize()
    seconds = time.perf_counter() - started
    samples = steps * trainer.training.batch_size
    achieved = samples * training_flops(trainer.network.config, tokens, text_tokens) / seconds
    sheet = peak_flops(DEVICE, "bfloat16")
    return {
        "seconds_a_step": seconds / steps,
        "samples_per_s": samples / seconds,
        "TFLOP_per_s": achieved / 1e12,
        "mfu": achieved / sheet if sheet else None,
        "mfu_of_measured": achieved / product,
        "waits_for_data": clock.seconds() / seconds,
        **profiled_step(trainer, seconds / steps),
    }


def profiled_step(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """What the profiler sees of one step on a GPU, which takes `seconds` without it; on the CPU nothing."""
    if DEVICE == "cpu":
        return {"synchronisations": None, "launches": None, "busy": None, "peak_memory_GB": None}
    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        trainer.update()
        synchronize()  # counted as cudaDeviceSynchronize, which the loop itself does not call
    calls = {event.key: event.count for event in profiled.key_averages()}
    # spans that torch names, such as an optimizer's step, lie around the kernels that they are made of
    kernels = [one for one in profiled.events() if one.device_type == DeviceType.CUDA and not one.is_user_annotation]
    return {
        "synchronisations": sum(calls.get(name, 0) for name in WAITING),
        "launches": sum(n for key, n in calls.items() if key.startswith(("cudaLaunchKernel", "cuLaunchKernel"))),
        "fills": calls.get("aten::fill_", 0),
        "busy": sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / seconds,
        "peak_memory_GB": torch.cuda.max_memory_allocated() / 1e9,
    }


def product_speed(size: str) -> float:
    """Operations a second of a large matrix product in bfloat16."""
    n = {"cuda": 8192, "cpu": 1024, "tiny": 128}[size]
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / timed(lambda: a @ b, rounds=10)


def fitting_trainer(
    sizes: Encodings, changes: dict[str, Any], batches: list[int], folder: Path, tracker: Tracker
) -> Trainer:
    """A trainer at the largest batch of which a step fits. Raises torch.OutOfMemoryError if none does."""
    for batch in batches:
        try:
            trainer = make_trainer(params_of(changes, batch), sizes, folder, tracker)
            for _ in range(2):  # the second one has the optimizer's state beside its activations
                trainer.update()
            return trainer
        except torch.OutOfMemoryError:
            if batch == batches[-1]:
                raise
            print(f"a batch of {batch} does not fit", flush=True)
        trainer = None  # its memory is what the next one needs; accelerate leaves it in a cycle of references
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()
        torch.cuda.empty_cache()
    raise ValueError("no batch was given")


def main() -> None:
    """Print a row for each way of running, and keep them."""
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=20, help="measured steps (default: 20)")
    arguments = start(parser)
    steps = 2 if arguments.tiny else arguments.steps
    sizes, changes, batches = SIZES[arguments.size]
    results = Results("training_loop", arguments.out)
    product = product_speed(arguments.size)
    results.add({"run": "matrix product", "TFLOP_per_s": product / 1e12})
    with tempfile.TemporaryDirectory() as name, closing(open_spool(Path(name), "pretrain", tags={})) as spool:
        folder = Path(name)
        write_encodings(folder / "encoded", sizes)
        trainer = fitting_trainer(sizes, changes, batches, folder, Tracker(spool))
        trainer.training = replace(trainer.training, steps=10**9)
        about = {"parameters": sum(one.numel() for one in trainer.network.parameters())}
        about |= {"batch": trainer.training.batch_size, "steps": steps}
        tokens, text = sizes.side**2, sizes.text_tokens
        for run, fill in (("as a stage runs", False), ("memory filled", True)):
            torch.utils.deterministic.fill_uninitialized_memory = fill
            row = {"run": run, **about, **measure(trainer, steps, tokens, text, product)}
            results.add(row)
            print(row, flush=True)
    print(results.path)


if __name__ == "__main__":
    main()

"""Peak memory of whole training stages at the paper's size, their held-out loss included, beside what the plan says.

    python benchmarks/stage_memory.py

The real `Trainer` makes two steps of two micro-batches, or of one, and takes the held-out loss between them and behind
them, as a stage does. First, with torch held to 24 GB, it trains the 4.8B at 512 pixels with one sample a step:
bfloat16 weights, 8-bit CAME within the backward pass, no average. Then, held to 80 GB, it does what profile `paper`
says of `train`, with as many samples in a micro-batch. The encodings are random. What runs out of memory has no figure,
and its row says so. Without a GPU the same code runs on a small network, and no memory is measured.
"""

import gc
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from common import DEVICE, PROJECT, Results, command_line, start
from synthetic import Encodings, write_encodings
from training_memory import LIMIT, make_network, peak_of

from model.network import NetworkConfig, Sana
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_overrides, apply_profile, build_params, read_yaml
from tasks.params.training_params import Training
from tasks.planning.training_memory import (
    Batch,
    Precision,
    backward_bytes,
    gradient_bytes,
    optimizer_bytes,
    weight_bytes,
)
from tasks.runtime.context import Context
from tasks.runtime.torch_setup import configure_torch
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.network_config import network_config
from tasks.training.training_loop import Trainer

LIMIT_OF_PAPER = 80e9  # bytes
IN_24_GB = {
    "train.weights": "bfloat16",
    "train.ema_decay": 0.0,
    "train.step_in_backward": True,
    "train.clip_norm": None,
    "train.batch_size": 1,
    "train.grad_accumulation": 1,
    "train.recompute_blocks": 0,
}
SMALL = {
    "network.hidden_size": 32,
    "network.linear_head_dim": 16,
    "network.cross_heads": 2,
    "pretrain.depth": 1,
    "grow.depth": 3,
    "prune.depths": [2],
}
SIZES = {
    "cuda": (Encodings(32, 16, 300, 2304, 32, 128), {}),
    "cpu": (Encodings(32, 4, 12, 128, 32, 16), SMALL),
    "tiny": (Encodings(4, 3, 5, 16, 4, 2), SMALL),
}


@dataclass(frozen=True)
class MeasuredStage:
    """A stage with the memory that it is to keep within, and what it has other than profile `paper` says."""

    name: str
    limit: float
    changes: dict[str, Any]


STAGES = (
    MeasuredStage("4.8B stage", LIMIT, IN_24_GB),
    MeasuredStage("train of paper", LIMIT_OF_PAPER, {}),
)


def params_of(changes: dict[str, Any]) -> Params:
    """The params of profile `paper` on this device, with steps of at most two micro-batches, as large as there."""
    values = apply_profile(read_yaml(PROJECT / PARAMS_FILE), "paper", PROJECT / "profiles")
    device = {"compute.device": DEVICE, "compute.threads": 1, "compute.data_workers": 0}
    paper = build_params(values, __file__).train
    two = {"train.batch_size": 2 * paper.batch_size // paper.grad_accumulation, "train.grad_accumulation": 2}
    return build_params(apply_overrides(values, device | two | changes, __file__), __file__)


def run_stage(params: Params, config: NetworkConfig, encoded: Path, tracker: Tracker) -> None:
    """Two steps, with the held-out loss between them and behind them."""
    with tempfile.TemporaryDirectory() as folder:
        device = configure_torch(params, params.compute.threads)
        places = Path(folder, "out"), Path(folder, "state")
        context = Context("train", params, *places, tracker, device, params.compute.threads)
        trainer = Trainer(context, network_of(config, params.train), encoded, params.train)
        for _ in range(2):
            trainer.update()
            trainer.evaluate()
        trainer.batches.close()


def network_of(config: NetworkConfig, chosen: Training) -> Sana:
    """Random weights in the format in which they are trained."""
    if chosen.weights == "bfloat16":
        return make_network(config)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return Sana(config)


def planned_bytes(config: NetworkConfig, sizes: Encodings, chosen: Training) -> int:
    """The memory that the plan counts for a training on one GPU, without its held-out loss."""
    weights = weight_bytes(config, chosen.weights)
    batch = Batch(chosen.batch_size // chosen.grad_accumulation, sizes.side**2, sizes.text_tokens)
    precision = Precision("bfloat16", fused_attention=DEVICE != "cpu")
    return (
        weights
        + (weights if chosen.ema_decay else 0)
        + gradient_bytes(config, chosen.weights, chosen.step_in_backward)
        + optimizer_bytes(chosen.optimizer, config)
        + backward_bytes(config, batch, precision, chosen.recompute_blocks, chosen.weights == "float32")
    )


def hold_to(limit: float | None) -> None:
    """Have torch refuse memory beyond `limit` bytes, or beyond what there is."""
    if DEVICE == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else min(1.0, limit / total))


def main() -> None:
    """Print a row for each stage, and keep them."""
    arguments = start(command_line(__doc__))
    sizes, changes = SIZES[arguments.size]
    results = Results("stage_memory", arguments.out)
    with tempfile.TemporaryDirectory() as name, closing(open_spool(Path(name), "train", tags={})) as spool:
        encoded = Path(name, "encoded")
        write_encodings(encoded, sizes)
        for stage in STAGES:
            params = params_of(changes | stage.changes)
            config = network_config(params.network, params.grow.depth, sizes.channels, sizes.caption_channels)
            hold_to(stage.limit)
            found = peak_of(lambda of=(params, config): run_stage(*of, encoded, Tracker(spool)))
            hold_to(None)
            AcceleratorState._reset_state(reset_partial_state=True)
            gc.collect()
            planned = planned_bytes(config, sizes, params.train)
            results.add({"what": stage.name, "limit_bytes": stage.limit, **found, "planned_bytes": planned})
            print(results.rows[-1], flush=True)
    print(results.path)


if __name__ == "__main__":
    main()

"""Held-out loss of the small model of an experiment, trained with 8-bit CAME and with its peers, over seeds.

    dvc repro encode
    python benchmarks/held_out_loss.py [--optimizers came8bit came adamw] [--seeds 0 1 2] [--threads 1]

Trains `pretrain` of the params.yaml in the working folder from its cached latents; optimizers share data, rate and
schedule, and under one seed initial weights, noise and order of samples. A row is printed as each run ends. With the
default's rate, which was chosen for 8-bit CAME, this says how near 8 bits come to 32, and nothing of how good AdamW is.
"""

import argparse
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from common import RESULTS, Results, hardware, versions

from tasks import pretrain
from tasks.params.experiment_params import Params
from tasks.params.params_files import load_params
from tasks.params.training_params import Pretrain
from tasks.runtime.context import Context
from tasks.runtime.torch_setup import configure_torch
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker

OPTIMIZERS = get_args(get_type_hints(Pretrain)["optimizer"])


def train(params: Params, optimizer: str, seed: int, threads: int) -> dict[str, Any]:
    """One run: its held-out loss before and after, and its seconds."""
    compute = replace(params.compute, seed=seed, device="cpu")
    chosen = replace(params, compute=compute, pretrain=replace(params.pretrain, optimizer=optimizer))
    device = configure_torch(chosen, threads)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, closing(open_spool(Path(folder), "pretrain", tags={})) as spool:
        out = Path(folder) / "out"
        out.mkdir()
        name = f"{optimizer}, seed {seed}"
        metrics = pretrain.run(Context(name, chosen, out, Path(folder) / "state", Tracker(spool), device, threads))
    losses = {key: metrics[key] for key in ("heldout_loss_before", "heldout_loss")}
    return {"optimizer": optimizer, "seed": seed, **losses, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    """Train, print a row for each run, compare with the first optimizer of the same seed, and keep all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=["came8bit", "came"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    params = load_params()
    print(hardware(), versions())
    results = Results("held_out_loss", RESULTS)
    for seed in arguments.seeds:
        for optimizer in arguments.optimizers:
            row = train(params, optimizer, seed, arguments.threads)
            first = next((other for other in results.rows if other["seed"] == seed), row)
            row["of_first"] = row["heldout_loss"] / first["heldout_loss"]
            results.add(row)
            print(
                "| {optimizer} | {seed} | {heldout_loss:.4f} | {of_first:.4f} | {seconds} |".format(**row), flush=True
            )
    print(results.path)


if __name__ == "__main__":
    main()

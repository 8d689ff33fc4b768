"""The stages of the smoke profile, run by `python -m tasks.<stage>` on the GPU and at the same time on the CPU.

    python benchmarks/stages.py

Both run the same stages over workspaces of their own, each stage at the same time. A row for each stage has its seconds
on both, and its losses with their relative difference. Where diffusers or webdataset is not installed the pictures
cannot be encoded: the stages that train then start from random encodings, and the others have rows that say so. Without
a GPU both run on the CPU.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from common import DEVICE, PROJECT, Results, command_line, peer, start
from synthetic import Encodings, write_encodings

from flows.graph import upstream_of
from tasks import layout
from tasks.params import PARAMS_FILE, PROFILES, apply_overrides, apply_profile, build_params, read_yaml

NEEDED = ("diffusers", "webdataset")
ARGUMENTS = {"prune": "--depth", "finetune": "--depth", "geneval": "--model"}
TRAINING = ("pretrain", "grow", "train", "importance", "prune", "finetune")
LOSSES = ("heldout_loss", "heldout_loss_before", "auc")
ENCODINGS = Encodings(4, 4, 12, 32, 64, 100)
TINY_STAGES = ("pretrain", "grow")


def write_workspace(root: Path, device: str, encoded: bool) -> list[str]:
    """A folder with the smoke profile's params for `device`, encodings if need be; returns its stages in order."""
    root.mkdir()
    values = apply_profile(read_yaml(PROJECT / PARAMS_FILE), "smoke", PROJECT / PROFILES)
    values = apply_overrides(values, {"compute.device": device}, __file__)
    (root / PARAMS_FILE).write_text(yaml.safe_dump(values), encoding="utf-8")
    if encoded:
        write_encodings(root / layout.ENCODED, ENCODINGS)
    names = [name for name in upstream_of(build_params(values, __file__)) if name != "report"]
    return [name for name in names if not encoded or name.partition("@")[0] in TRAINING]


def run_stage(root: Path, name: str) -> dict[str, Any]:
    """Run one stage: its seconds and metrics, or the last line that it said."""
    stem, _, branch = name.partition("@")
    command = [sys.executable, "-m", f"tasks.{stem}", *([ARGUMENTS[stem], branch] if branch else [])]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # a relative path would start at the workspace
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *map(os.path.abspath, paths)])}
    started = time.monotonic()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        return {"problem": f"exit status {done.returncode}: {lines[-1][:300]}", "seconds": seconds, "metrics": {}}
    record = json.loads((root / layout.STAGE_RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return {
        "problem": None,
        "seconds": seconds,
        "kernels": record["kernels"],
        "metrics": metrics_of(root, stem, branch),
    }


def metrics_of(root: Path, stem: str, branch: str) -> dict[str, float]:
    """What a stage measured, from its output."""
    names = {"shard": "shards", "encode": "encoded", "pretrain": "small", "grow": "grown_init", "train": "grown"}
    names |= {"prune": f"pruned-{branch}", "finetune": f"finetuned-{branch}", "geneval": f"geneval/{branch}"}
    return json.loads((root / layout.OUTPUTS / names.get(stem, stem) / "metrics.json").read_text(encoding="utf-8"))


def compared(name: str, gpu: dict[str, Any], cpu: dict[str, Any]) -> dict[str, Any]:
    """A row for a stage that ran on both."""
    row: dict[str, Any] = {"stage": name, "problem": gpu["problem"] or cpu["problem"]}
    row |= {"seconds": gpu["seconds"], "cpu_seconds": cpu["seconds"], "kernels": gpu.get("kernels")}
    for key in LOSSES:
        if key in gpu["metrics"] and key in cpu["metrics"]:
            one, other = gpu["metrics"][key], cpu["metrics"][key]
            row |= {key: one, f"cpu_{key}": other, f"{key}_difference": abs(one - other) / max(abs(other), 1e-12)}
    return row


def rows_of(roots: Sequence[Path], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run the stages one after the other, each in both workspaces at once; a failed one does not stop the others."""
    with ThreadPoolExecutor(2) as pool:
        for name in names:
            yield compared(name, *pool.map(lambda root, name=name: run_stage(root, name), roots))


def main() -> None:
    """Print and keep a row for each stage."""
    arguments = start(command_line(__doc__))
    results = Results("stages", arguments.out)
    absent = [module for module in NEEDED if peer(module) is None]
    if absent:
        why = f"{' and '.join(absent)} not installed: the stages that train run on random encodings"
        results.add({"stage": "shard, autoencoder, text_encoder, encode, judge, geneval, controls", "problem": why})
        print(why, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "cpu"
        encoded = arguments.tiny or bool(absent)
        names = write_workspace(first, DEVICE, encoded)
        write_workspace(second, "cpu", encoded)
        if arguments.tiny:
            names = [name for name in names if name in TINY_STAGES]
        for row in rows_of((first, second), names):
            results.add(row)
            print(row, flush=True)
    print(results.path)


if __name__ == "__main__":
    main()

"""The stages of the smoke profile, run by `python -m tasks.<stage>` on the GPU and at the same time on the CPU.

    python benchmarks/stages.py

First the stages that train, from random encodings: a row for each has its seconds on both, and its losses with their
relative difference. Then, on the GPU alone, those from rendered scenes to GenEval's score; where diffusers or
webdataset is not installed a row says that they cannot run. Without a GPU all run on the CPU.
"""

import json
import os
import shlex
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

from tasks.params.params_files import PARAMS_FILE, PROFILES, apply_overrides, apply_profile, load_params, read_yaml
from tasks.stages import stages_of
from tasks.system import paths

NEEDED = ("diffusers", "webdataset")
DEPTH = 2  # one of the profile's
TRAINING = ("pretrain", "grow", "train", "importance", f"prune@{DEPTH}", f"finetune@{DEPTH}")
TINY = ("pretrain", "grow")
PICTURES = ("shard", "autoencoder", "text_encoder", "encode", "pretrain", "scorer", "judge", "evaluate@small")
LOSSES = ("heldout_loss", "heldout_loss_before")
ENCODINGS = Encodings(4, 4, 12, 32, 64, 100)


def write_workspace(root: Path, device: str) -> None:
    """A folder with the smoke profile's params for `device`."""
    root.mkdir()
    values = apply_profile(read_yaml(PROJECT / PARAMS_FILE), "smoke", PROJECT / PROFILES)
    values = apply_overrides(values, {"compute.device": device}, __file__)
    (root / PARAMS_FILE).write_text(yaml.safe_dump(values), encoding="utf-8")


def run_stage(root: Path, name: str) -> dict[str, Any]:
    """Run one stage: its seconds and metrics, or the last line that it said."""
    stage = stages_of(load_params(root / PARAMS_FILE))[name]
    command = [sys.executable, *shlex.split(stage.command)[1:]]
    folders = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # a relative path would start at the workspace
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *map(os.path.abspath, folders)])}
    started = time.monotonic()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        return {"problem": f"exit status {done.returncode}: {lines[-1][:300]}", "seconds": seconds, "metrics": {}}
    record = json.loads((root / paths.STAGE_RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return {
        "problem": None,
        "seconds": seconds,
        "kernels": record["kernels"],
        "metrics": json.loads((root / stage.output / "metrics.json").read_text(encoding="utf-8")),
    }


def compared(name: str, gpu: dict[str, Any], cpu: dict[str, Any]) -> dict[str, Any]:
    """A row for a stage that ran on both."""
    row: dict[str, Any] = {"stage": name, "problem": gpu["problem"] or cpu["problem"]}
    row |= {"seconds": gpu["seconds"], "cpu_seconds": cpu["seconds"], "kernels": gpu.get("kernels")}
    for key in LOSSES:
        if key in gpu["metrics"] and key in cpu["metrics"]:
            one, other = gpu["metrics"][key], cpu["metrics"][key]
            row |= {key: one, f"cpu_{key}": other, f"{key}_difference": abs(one - other) / max(abs(other), 1e-12)}
    return row


def trained(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of the stages that train; each runs on both devices at once, and a failed one does not stop the others."""
    roots = [folder / "first", folder / "cpu"]
    for root, device in zip(roots, (DEVICE, "cpu"), strict=True):
        write_workspace(root, device)
        write_encodings(root / paths.ENCODED, ENCODINGS)
    with ThreadPoolExecutor(2) as pool:
        for name in names:
            yield compared(name, *pool.map(lambda root, name=name: run_stage(root, name), roots))


def from_pictures(root: Path) -> Iterator[dict[str, Any]]:
    """Rows of the stages from pictures to a score, on one device; the first that fails is the last."""
    write_workspace(root, DEVICE)
    for name in PICTURES:
        done = run_stage(root, name)
        yield {"stage": f"{name}, from pictures", **done}
        if done["problem"]:
            return


def main() -> None:
    """Print and keep a row for each stage."""
    arguments = start(command_line(__doc__))
    results = Results("stages", arguments.out)

    def keep(row: dict[str, Any]) -> None:
        results.add(row)
        print(row, flush=True)

    with tempfile.TemporaryDirectory() as name:
        for row in trained(Path(name), TINY if arguments.tiny else TRAINING):
            keep(row)
        if absent := [module for module in NEEDED if peer(module) is None]:
            keep({"stage": "from pictures", "problem": f"{' and '.join(absent)} not installed"})
        elif not arguments.tiny:
            for row in from_pictures(Path(name) / "pictures"):
                keep(row)
    print(results.path)


if __name__ == "__main__":
    main()

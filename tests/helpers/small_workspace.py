"""A small workspace: params, and encoded samples of random latents and texts, as stages find them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from tasks.data.encoded_samples import NULL_TEXT, NULL_TEXT_NAME
from tasks.data.npy_arrays import to_npy
from tasks.data.shards import Sample, describe, write_index, write_split
from tasks.params.params_files import PARAMS_FILE, apply_overrides, read_yaml
from tasks.system import paths
from tasks.system.manifest import write_manifest
from tests.helpers.patience import PATIENCE_SECONDS

PROJECT = Path(__file__).parents[2]
PUBLISHED_DETECTOR = {
    "geneval.detector": "mask2former",
    "geneval.mask2former_path": "models/mask2former",
    "geneval.clip_path": "models/clip",
    "geneval.prompts": "models/evaluation_metadata.jsonl",
}
"""What params must say beside a source of own pictures; the stages before the evaluation read none of these paths."""


def write_params(workspace: Path, changes: dict[str, Any]) -> None:
    """The default params with dotted keys changed, as the workspace's own."""
    values = apply_overrides(read_yaml(PROJECT / PARAMS_FILE), changes, "test")
    (workspace / PARAMS_FILE).write_text(yaml.safe_dump(values), encoding="utf-8")


def write_encoded(
    workspace: Path,
    train: int = 4,
    heldout: int = 12,
    tokens: tuple[int, ...] = (2, 3, 4),
    per_shard: int = 8,
    numbers: Mapping[tuple[str, int, str], float] | None = None,
) -> None:
    """The output of stage `encode` with random numbers; two of its samples share a caption.

    `tokens` are the lengths of the captions, in turn. `numbers` take the place of the last number of an array: the keys
    are a split, the number of a sample in it, and the array's extension, such as `latent.npy`.
    """
    random = np.random.default_rng(0)
    folder = workspace / paths.ENCODED
    folder.mkdir(parents=True)
    splits = {}
    for split, count in (("train", train), ("heldout", heldout)):
        samples = []
        for i in range(count):
            arrays = {
                "latent.npy": random.standard_normal((3, 4, 4)).astype(np.float16),
                "text.npy": random.standard_normal((tokens[i % len(tokens)], 6)).astype(np.float16),
            }
            for extension, array in arrays.items():
                if numbers and (split, i, extension) in numbers:
                    array.flat[-1] = numbers[split, i, extension]
            members = {extension: to_npy(array) for extension, array in arrays.items()}
            samples.append(Sample(f"{i:04d}", members | {"json": describe(32, 32, f"a photo of {max(i, 1)} things")}))
        splits[split] = write_split(folder, split, samples, per_shard)
    write_index(folder, splits)
    save_file({NULL_TEXT_NAME: torch.zeros(1, 6, dtype=torch.float16)}, folder / NULL_TEXT)
    write_manifest(folder)


def stage_process(workspace: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m <command>` started in the workspace, with its output piped."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a stage prints until it has ended well."""
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    return output


def small_model(workspace: Path) -> dict[str, bytes]:
    """The files of the small model, by name."""
    return {path.name: path.read_bytes() for path in sorted((workspace / paths.SMALL).iterdir())}

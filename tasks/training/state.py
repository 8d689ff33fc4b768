"""What a training run resumes from: weights, EMA, optimizer state, step and history; two generations are kept."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.errors import UserError
from tasks.files import read_json, replace_folder, verify_manifest, write_json, write_manifest
from tasks.training.ema import Ema

KEPT = 2


@dataclass
class History:
    """Rows of the loss curves, by optimizer step, and the losses since the last row."""

    training: list[dict[str, float]] = field(default_factory=list)
    heldout: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


def save_state(
    folder: Path, step: int, network: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, history: History
) -> None:
    """Write the state after `step` updates as `folder/step-NNNNNNNN`, whole or not at all, and keep the newest two."""
    target = folder / f"step-{step:08d}"
    building = folder / "building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_file(network.state_dict(), building / "network.safetensors")
    save_file(ema.state(), building / "ema.safetensors")
    torch.save(optimizer.state_dict(), building / "optimizer.pt")
    write_json(building / "state.json", {"step": step, "history": vars(history)})
    write_manifest(building)
    replace_folder(building, target)
    for old in _generations(folder)[KEPT:]:
        shutil.rmtree(old)


def load_state(folder: Path, network: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> tuple[int, History]:
    """Restore the newest whole state; (0, empty history) if there is none. A damaged one is named and passed over."""
    for generation in _generations(folder):
        try:
            verify_manifest(generation)
        except UserError as error:
            print(f"passing over a damaged training state: {error}", flush=True)
            continue
        network.load_state_dict(load_file(generation / "network.safetensors"))
        ema.load(load_file(generation / "ema.safetensors"))
        optimizer.load_state_dict(torch.load(generation / "optimizer.pt", weights_only=True))
        state: dict[str, Any] = read_json(generation / "state.json")
        return state["step"], History(**state["history"])
    return 0, History()


def _generations(folder: Path) -> list[Path]:
    """Finished states, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)

"""The state that a training run resumes from: weights, EMA, optimizer state, step and history.

The newest two generations are kept. A generation is a folder of `network.safetensors`, `ema.safetensors`,
`optimizer.pt` and `state.json`. If tensors are sharded by rows, rank N writes its rows to `rows-N.safetensors`, whose
header names the first row of each tensor. So a run can resume on another number of ranks than wrote the state.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kernels.came8bit.state import first_row
from tasks.computing import ranks
from tasks.system.errors import UserError
from tasks.system.files import read_json, replace_folder, write_json
from tasks.system.manifest import verify_manifest, write_manifest
from tasks.training.ema import Ema
from tasks.training.fsdp_sharding import holds_first_copy, is_sharded, local

KEPT_GENERATIONS = 2
"""Generations that are kept: the older one serves if the newest is damaged."""

FIRST_ROWS = "first_rows"
"""The key in the header of a `rows-N.safetensors`: JSON of each tensor's first row in the file."""

Tensors = dict[str, Tensor]


@dataclass
class History:
    """The rows of the loss curves, and `recent`, the losses of the steps since the last row."""

    training: list[dict[str, float]] = field(default_factory=list)
    heldout: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


def save_state(folder: Path, step: int, network: nn.Module, ema: Ema, optimizer: Optimizer, history: History) -> None:
    """Write the state after `step` updates as `folder/step-NNNNNNNN`, whole or not at all, and keep the newest two.

    All ranks must call it: each writes its rows of sharded tensors, and rank 0 the rest, which all have alike.
    """
    target = folder / f"step-{step:08d}"
    building = folder / "building"
    weights, averages, steps = network.state_dict(), ema.state(), optimizer.state_dict()
    if ranks.rank() == 0:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    ranks.wait_for_all()
    tensors = {f"network/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"ema/{name}": tensor for name, tensor in averages.items()}
    tensors |= dict(optimizer_tensors(steps))
    save_rows({name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}, building)
    ranks.wait_for_all()
    if ranks.rank() == 0:
        save_file(unsharded(weights), building / "network.safetensors")
        save_file(unsharded(averages), building / "ema.safetensors")
        steps["state"] = {place: unsharded(state) for place, state in steps["state"].items()}
        torch.save(steps, building / "optimizer.pt")
        write_json(building / "state.json", {"step": step, "history": vars(history)})
        write_manifest(building)
        replace_folder(building, target)
        for old in _generations(folder)[KEPT_GENERATIONS:]:
            shutil.rmtree(old)
    ranks.wait_for_all()


def load_state(folder: Path, network: nn.Module, ema: Ema, optimizer: Optimizer) -> tuple[int, History]:
    """Restore the newest state that is whole; returns its step and history, or (0, empty history) if there is none.

    A damaged state is named on stdout and passed over.
    """
    found = ranks.gather(_newest_whole(folder) if ranks.rank() == 0 else None)[0]
    if found is None:
        return 0, History()
    generation = folder / found
    rows = Rows(generation)
    weights, averages = (load_file(generation / f"{name}.safetensors") for name in ("network", "ema"))
    load_optimizer(optimizer, torch.load(generation / "optimizer.pt", weights_only=True), rows)
    for name, tensor in network.state_dict().items():
        rows.restore(tensor, f"network/{name}", weights.get(name))
    for name, tensor in ema.state().items():
        rows.restore(tensor, f"ema/{name}", averages.get(name))
    state: dict[str, Any] = read_json(generation / "state.json")
    return state["step"], History(**state["history"])


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any], rows: "Rows") -> None:
    """Restore an optimizer's state from the `state_dict` in `saved`; its sharded tensors are in `rows`."""
    if any(is_sharded(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        make_state(optimizer)
        for name, tensor in optimizer_tensors(optimizer.state_dict()):
            _, place, key = name.split("/")
            rows.restore(tensor, name, saved["state"].get(int(place), {}).get(key))
        for group, values in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            group |= {key: value for key, value in values.items() if key != "params"}
        return
    for name in rows.names():
        kind, *place = name.split("/")
        if kind == "optimizer":
            saved["state"].setdefault(int(place[0]), {})[place[1]] = rows.read(name)
    optimizer.load_state_dict(saved)


def make_state(optimizer: Optimizer) -> None:
    """Make an optimizer create its state, sharded as its parameters are.

    Optimizers create their state in the first step, so this takes one with zero gradients at a rate of zero, which
    moves nothing. `load_optimizer` then overwrites the state.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def optimizer_tensors(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an optimizer's `state_dict`, named `optimizer/<position of the parameter>/<key>`."""
    for place, values in state["state"].items():
        yield from ((f"optimizer/{place}/{key}", one) for key, one in values.items() if isinstance(one, Tensor))


def unsharded(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not sharded, which all ranks have alike."""
    return {name: value for name, value in values.items() if not (isinstance(value, Tensor) and is_sharded(value))}


def save_rows(tensors: Tensors, folder: Path) -> None:
    """Write this rank's rows of sharded tensors, if it has any, with the number of the first in the header."""
    here = {
        name: local(tensor).contiguous()
        for name, tensor in tensors.items()
        if len(local(tensor)) and holds_first_copy(tensor)
    }
    first = {name: first_row(tensors[name]) for name in here}
    if here:
        save_file(here, folder / f"rows-{ranks.rank():05d}.safetensors", {FIRST_ROWS: json.dumps(first)})


class Rows:
    """The sharded tensors of a generation: finds any rows of a tensor in the files of the ranks that wrote them."""

    def __init__(self, folder: Path) -> None:
        self.parts: dict[str, list[tuple[int, Any]]] = {}
        for path in sorted(folder.glob("rows-*.safetensors")):
            file = safe_open(path, "pt")
            for name, first in json.loads(file.metadata()[FIRST_ROWS]).items():
                self.parts.setdefault(name, []).append((first, file.get_slice(name)))

    def names(self) -> list[str]:
        """The names of the tensors that were sharded when the state was written."""
        return list(self.parts)

    def read(self, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """`count` rows of a tensor, beginning with row `first`; all rows from there on if `count` is None."""
        last = None if count is None else first + count
        found = [
            part[max(first - start, 0) : None if last is None else max(last - start, 0)]
            for start, part in sorted(self.parts[name], key=lambda one: one[0])
        ]
        return torch.cat(found)

    @torch.no_grad()
    def restore(self, tensor: Tensor, name: str, whole: Tensor | None) -> None:
        """Fill this rank's rows of a tensor, from `whole` if the tensor was saved whole, else from the shards."""
        here, first = local(tensor), first_row(tensor)
        if whole is None:
            here.copy_(self.read(name, first, len(here)))
        else:
            here.copy_(whole[first : first + len(here)] if here.dim() else whole)


def _newest_whole(folder: Path) -> str | None:
    """The name of the newest generation whose files fit its manifest."""
    for generation in _generations(folder):
        try:
            verify_manifest(generation)
        except UserError as error:
            print(f"passing over a damaged training state: {error}", flush=True)
            continue
        return generation.name
    return None


def _generations(folder: Path) -> list[Path]:
    """Finished states, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)

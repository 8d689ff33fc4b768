"""The state that a training run resumes from: weights, EMA, optimizer state, step and history.

The newest two generations are kept. A generation is a folder of `network.safetensors`, `ema.safetensors`,
`optimizer.safetensors`, `state.json`, and `optimizer.pt` with the optimizer's settings and counts. If tensors are
sharded by rows, rank N writes its rows to `rows-N.safetensors`, whose header names the first row of each tensor. So a
run can resume on another number of ranks than wrote the state.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kernels.came8bit.state import first_row
from tasks.computing import ranks
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.system.manifest import verify_manifest
from tasks.training.ema import Ema
from tasks.training.fsdp_sharding import holds_first_copy, is_sharded, local
from tasks.training.generation_writer import GenerationWriter, generations
from tasks.training.host_snapshot import HostSnapshot, Tensors

FIRST_ROWS = "first_rows"
"""The key in the header of a `rows-N.safetensors`: JSON of each tensor's first row in the file."""


@dataclass
class History:
    """The rows of the loss curves, and `recent`, the losses of the steps since the last row."""

    training: list[dict[str, float]] = field(default_factory=list)
    heldout: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


class StateWriter(GenerationWriter):
    """Saves the states of one training. A thread writes them, from a copy in the memory of the host."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.snapshot = HostSnapshot()

    def save(self, step: int, network: nn.Module, ema: Ema, optimizer: Optimizer, history: History) -> None:
        """Copy the state after `step` updates, and begin to write it as `folder/step-NNNNNNNN`, whole or not at all.

        All ranks must call it: each writes its rows of sharded tensors, and rank 0 the rest, which all have alike. The
        training may go on at once. Raises UserError if the state before could not be written.
        """
        self.begin()
        optimizer_state = optimizer.state_dict()
        tensors = {
            "network": dict(network.state_dict()),
            "ema": ema.state(),
            "optimizer": dict(optimizer_tensors(optimizer_state)),
        }
        files = rows_file({f"{kind}/{name}": one for kind in tensors for name, one in tensors[kind].items()})
        files = {name: self.snapshot.take(name, rows, metadata) for name, (rows, metadata) in files.items()}
        if self.rank == 0:
            for kind, named in tensors.items():
                files[f"{kind}.safetensors"] = self.snapshot.take(kind, unsharded(named))
            files["optimizer.pt"] = [without_tensors(optimizer_state)]
            said = {"step": step, "history": vars(history)}
            files["state.json"] = [(json.dumps(said, indent=2, allow_nan=False) + "\n").encode()]
        self.start(step, files, self.snapshot.wait)


def save_state(folder: Path, step: int, network: nn.Module, ema: Ema, optimizer: Optimizer, history: History) -> None:
    """Write the state after `step` updates, and return when it is in its place. All ranks must call it."""
    with StateWriter(folder) as writer:
        writer.save(step, network, ema, optimizer, history)


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
    load_optimizer(optimizer, saved_optimizer(generation), rows)
    for name, tensor in network.state_dict().items():
        rows.restore(tensor, f"network/{name}", weights.get(name))
    for name, tensor in ema.state().items():
        rows.restore(tensor, f"ema/{name}", averages.get(name))
    state: dict[str, Any] = read_json(generation / "state.json")
    return state["step"], History(**state["history"])


def saved_optimizer(generation: Path) -> dict[str, Any]:
    """An optimizer's `state_dict` as it was saved, without the tensors that were sharded."""
    saved: dict[str, Any] = torch.load(generation / "optimizer.pt", weights_only=True)
    for name, tensor in load_file(generation / "optimizer.safetensors").items():
        place, _, key = name.partition("/")
        saved["state"].setdefault(int(place), {})[key] = tensor
    return saved


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any], rows: "Rows") -> None:
    """Restore an optimizer's state from the `state_dict` in `saved`; its sharded tensors are in `rows`."""
    if any(is_sharded(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        make_state(optimizer)
        for name, tensor in optimizer_tensors(optimizer.state_dict()):
            place, _, key = name.partition("/")
            rows.restore(tensor, f"optimizer/{name}", saved["state"].get(int(place), {}).get(key))
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
    """The tensors of an optimizer's `state_dict`, named `<position of the parameter>/<key>`."""
    for place, values in state["state"].items():
        yield from ((f"{place}/{key}", one) for key, one in values.items() if isinstance(one, Tensor))


def without_tensors(state: dict[str, Any]) -> bytes:
    """What else an optimizer's `state_dict` holds, as `torch.save` writes it."""
    numbers = {
        place: {key: one for key, one in values.items() if not isinstance(one, Tensor)}
        for place, values in state["state"].items()
    }
    file = io.BytesIO()
    torch.save({**state, "state": numbers}, file)
    return file.getvalue()


def unsharded(tensors: Tensors) -> Tensors:
    """The tensors that are not sharded, which all ranks have alike."""
    return {name: tensor for name, tensor in tensors.items() if not is_sharded(tensor)}


def rows_file(tensors: Tensors) -> dict[str, tuple[Tensors, dict[str, str]]]:
    """The file of this rank's rows of sharded tensors, if it has any: its tensors, and the first row of each."""
    sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    here = {name: tensor for name, tensor in sharded.items() if len(local(tensor)) and holds_first_copy(tensor)}
    first = {name: first_row(tensor) for name, tensor in here.items()}
    return {f"rows-{ranks.rank():05d}.safetensors": (here, {FIRST_ROWS: json.dumps(first)})} if here else {}


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
    for generation in generations(folder):
        try:
            verify_manifest(generation)
        except UserError as error:
            print(f"passing over a damaged training state: {error}", flush=True)
            continue
        return generation.name
    return None

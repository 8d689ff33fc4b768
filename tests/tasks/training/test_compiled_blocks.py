"""torch.compile takes a block whole: the graph has no break, on the reference and on Triton's kernels."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch._dynamo.utils import counters

from tasks.params.params_files import load_params
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training import training_loop
from tasks.training.compiled_blocks import compile_blocks
from tasks.training.teacher import block_outputs
from tasks.training.training_loop import Trainer
from tests.helpers.small_networks import small_batch, small_network, velocity
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES

PROJECT = Path(__file__).parents[3]
LAUNCHES_FORWARD = [1, 3, 1, 1, 1, 1]
"""Kernels that a block's operations launch in the forward pass: modulation, attention, gated residual, modulation,
Mix-FFN, gated residual."""


@pytest.fixture(autouse=True)
def compiler_of_its_own() -> Iterator[None]:
    """What was compiled and counted by other tests is forgotten, and what this one leaves too."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    counters.clear()


def breaks() -> dict[str, int]:
    """How often the graph broke, by the reason."""
    return dict(counters["graph_break"])


def train(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A short training under autocast. The compiler's C++ would take a minute, so its graphs run in PyTorch."""
    monkeypatch.setattr(training_loop, "compile_blocks", lambda network: compile_blocks(network, "aot_eager"))
    write_params(Path.cwd(), CHANGES | {"compute.compile": compiled, "pretrain.steps": 5})
    params = load_params()
    with closing(open_spool(Path("spools"), "pretrain", tags={})) as spool:
        context = Context("pretrain", params, Path("out"), Path(f"state-{compiled}"), Tracker(spool), "cpu", 1)
        context.out.mkdir(exist_ok=True)
        trainer = Trainer(context, small_network(3), paths.ENCODED, params.pretrain)
        trainer.run()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer


def test_training_compiles_its_blocks_without_a_graph_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)
    plain = train(False, monkeypatch)
    assert not counters["stats"]
    compiled = train(True, monkeypatch)
    assert counters["stats"]["unique_graphs"] > 0 and breaks() == {}
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    # Five steps in bfloat16 from weights with large activations: every difference in rounding grows.
    assert compiled.history.training[0]["loss"] == pytest.approx(plain.history.training[0]["loss"], rel=1e-2)
    assert compiled.network.state_dict().keys() == plain.network.state_dict().keys()


def test_blocks_share_what_is_compiled_and_hooks_see_their_outputs() -> None:
    network, plain = small_network(3), small_network(3)
    compile_blocks(network, "aot_eager")
    latents, _, text, mask = small_batch()
    seen: list[list[Tensor]] = []
    for one in (network, plain):
        with block_outputs(one, range(3)) as tokens:
            velocity(one, latents, one.encode_text(text, mask)).square().mean().backward()
        seen.append([*tokens, *(parameter.grad for parameter in one.parameters())])
    assert counters["stats"]["unique_graphs"] == 1 and breaks() == {}
    for one, two in zip(*seen, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("autocast", [False, True])
def test_triton_kernels_stand_in_the_one_graph_of_a_block(autocast: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, str(Path(__file__).with_name("block_graph.py")), *(["--autocast"] if autocast else [])]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["breaks"] == {} and found["graphs"] == 1
    forward = [count for name, count in found["launches"] if name.startswith("fwd")]
    backward = [count for name, count in found["launches"] if name.startswith("bwd")]
    assert forward == LAUNCHES_FORWARD
    assert len(backward) == len(forward) and all(backward)

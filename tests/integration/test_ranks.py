"""Stages on several processes, launched as users do: the same results as on one, and no failure that loses anything."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from kernels.came8bit.state import first_row
from kernels.optimizers import build_optimizer
from model.checkpoint import load_network
from model.network import NetworkConfig, Sana
from tasks.computing import ranks
from tasks.evaluate import run as run_evaluate
from tasks.params.params_files import PARAMS_FILE, apply_overrides, apply_profile, load_params, read_yaml
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.system.processes import LEASE_VARIABLE
from tasks.tracking.report_spool import SPOOLS, open_spool
from tasks.tracking.tracker import Tracker
from tasks.training import training_loop
from tasks.training.ema import Ema
from tasks.training.fsdp_sharding import gathered, is_sharded, local, shard
from tasks.training.generation_writer import generations
from tasks.training.network_config import network_config
from tasks.training.teacher import Teacher
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch
from tasks.training.training_loop import Trainer
from tasks.training.training_state import History, load_state, save_state
from tests.helpers.drawing_workspace import all_bytes, write_workspace
from tests.helpers.patience import PATIENCE_SECONDS, PIPELINE_SECONDS, wait_for
from tests.helpers.small_workspace import PROJECT, finish, small_model, stage_process, write_encoded
from tests.kernels.processes import run_processes

UPSTREAM = """
from tasks.params.params_files import load_params
from tasks.runtime.stage_run import run_stage
from tasks.stages import stage_of
for stem in ("shard", "autoencoder", "text_encoder", "encode"):
    run_stage(stage_of(stem, load_params()), load_params())
"""
PARALLELISMS = ("ddp", "fully_shard")
# CAME divides by the size of gradients, however small, and its first steps are long without bias correction. So it
# enlarges what the order of sums rounds away: in float32 24 steps on two processes end .003 from those of one, with
# bias correction .0002, and with AdamW 1e-8 to 2e-7 (smoke profile, seeds 0 and 1)
FLOAT32 = {"compute.dtype": "float32", "pretrain.bias_correction": True}
# AdamW corrects its bias by itself
SHORT = {"pretrain.steps": 6, "pretrain.grad_accumulation": 2, "pretrain.optimizer": "adamw"}
SHORT |= {"pretrain.bias_correction": False}
TWO = FLOAT32 | {"compute.processes_per_node": 2}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the smoke profile's stages before `pretrain` have run."""
    folder = tmp_path_factory.mktemp("ranks") / "encoded"
    folder.mkdir()
    write_smoke(folder, {})
    subprocess.run(
        [sys.executable, "-c", UPSTREAM], cwd=folder, env=environment(), check=True, timeout=PIPELINE_SECONDS
    )
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT)}


def write_smoke(folder: Path, changes: dict[str, Any]) -> None:
    values = apply_profile(read_yaml(PROJECT / PARAMS_FILE), "smoke", PROJECT / "profiles")
    (folder / PARAMS_FILE).write_text(yaml.safe_dump(apply_overrides(values, changes, "test")), encoding="utf-8")


def workspace(encoded: Path, name: str, changes: dict[str, Any]) -> Path:
    """A copy of the workspace with other params."""
    folder = encoded.parent / name
    shutil.copytree(encoded, folder)
    write_smoke(folder, changes)
    return folder


def column(folder: Path, name: str, place: int) -> torch.Tensor:
    rows = (folder / paths.SMALL / name).read_text().splitlines()[1:]
    return torch.tensor([float(row.split(",")[place]) for row in rows], dtype=torch.float64)


def state_of(folder: Path) -> list[Path]:
    found = list((folder / paths.STATE / "state" / "pretrain").glob("*"))
    return generations(found[0]) if found else []


def wait_for_state(folder: Path, process: subprocess.Popen[str], count: int = 1) -> None:
    while len(state_of(folder)) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def ranks_of(folder: Path) -> list[int]:
    """The processes of a workspace's ranks, by number."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            variables = dict(one.partition(b"=")[::2] for one in (process / "environ").read_bytes().split(b"\0"))
            here = (process / "cwd").resolve() == folder.resolve()
        except OSError:
            continue  # it has ended
        if here and b"tasks.runtime.rank_worker" in arguments:
            found[int(variables[b"RANK"])] = int(process.name)
    return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module")
def one(encoded: Path) -> Path:
    folder = workspace(encoded, "one", FLOAT32)
    finish(stage_process(folder, "tasks.pretrain"))
    return folder


@pytest.fixture(scope="module")
def two(encoded: Path) -> dict[str, Path]:
    """Both kinds of parallelism on two processes."""
    folders = {}
    for parallelism in PARALLELISMS:
        folders[parallelism] = workspace(encoded, parallelism, TWO | {"compute.parallelism": parallelism})
        finish(stage_process(folders[parallelism], "tasks.pretrain"))
    return folders


@pytest.mark.parametrize("parallelism", PARALLELISMS)
def test_two_processes_train_the_smoke_profile_to_the_held_out_loss_of_one(
    one: Path, two: dict[str, Path], parallelism: str
) -> None:
    ours, theirs = column(two[parallelism], "heldout.csv", 2), column(one, "heldout.csv", 2)
    assert ours[0] == theirs[0]  # of the same initial weights, in whole batches
    assert (ours - theirs).abs().max() < 1e-3 and theirs[-1] < theirs[0] / 2
    losses = column(two[parallelism], "history.csv", 2), column(one, "history.csv", 2)
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)  # the same samples at the same noise
    network = load_network(two[parallelism] / paths.SMALL)
    assert not any(map(is_sharded, network.parameters()))


def test_in_the_profiles_own_bfloat16_adamw_ends_where_one_process_does(encoded: Path) -> None:
    adamw = {"pretrain.optimizer": "adamw", "pretrain.clip_norm": None}
    two = {"compute.processes_per_node": 2}
    runs = {"alone": {}, "halves": {"pretrain.grad_accumulation": 2}} | {
        parallelism: two | {"compute.parallelism": parallelism} for parallelism in PARALLELISMS
    }
    loss = {}
    for name, changes in runs.items():
        folder = workspace(encoded, f"bfloat16-{name}", adamw | changes)
        finish(stage_process(folder, "tasks.pretrain"))
        loss[name] = column(folder, "heldout.csv", 2)[-1].item()
    assert abs(loss["ddp"] - loss["alone"]) < 1e-3 and abs(loss["fully_shard"] - loss["alone"]) < 1e-3
    # two processes are one in two micro-batches, whose gradients are rounded alike
    assert abs(loss["ddp"] - loss["halves"]) < 1e-6


class RoundedWeightsLoss(FlowMatchingLoss):
    """The loss of a network whose weights are rounded to bfloat16, norms and tables too, as shards are gathered."""

    def forward(self, batch: NoisedBatch) -> torch.Tensor:
        rounded = {f"network.{name}": one.bfloat16() for name, one in self.network.named_parameters()}
        return torch.func.functional_call(FlowMatchingLoss(self.network), rounded, (batch,))


def test_shards_in_bfloat16_train_as_one_process_whose_weights_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_encoded(tmp_path, train=37)
    bfloat16 = SHORT | {"compute.dtype": "bfloat16"}
    write_smoke(tmp_path, bfloat16)
    run_processes(2, tmp_path, train_with_adamw)
    write_smoke(tmp_path, bfloat16 | {"pretrain.grad_accumulation": 4})  # the micro-batches of two processes
    monkeypatch.setattr(training_loop, "FlowMatchingLoss", RoundedWeightsLoss)
    train_with_adamw(tmp_path)
    sharded, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("fully_shard-2", "ddp-1"))
    for name in rounded:  # seed 0: they differ by 3e-8, and by .008 from a process that rounds what autocast rounds
        torch.testing.assert_close(sharded[name], rounded[name], rtol=0, atol=1e-6)


def train_with_adamw(folder: Path, taught: bool = False) -> None:
    """Six steps in two micro-batches, by each parallelism, into a folder of its own; `taught` by a deeper network."""
    params = load_params(folder / PARAMS_FILE)
    if ranks.world_size() > 1:  # which accelerate reads, as torchrun would have it
        number, count = str(ranks.rank()), str(ranks.world_size())
        os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    for parallelism in PARALLELISMS:
        chosen = replace(params, compute=replace(params.compute, parallelism=parallelism))
        out = folder / f"{parallelism}-{ranks.world_size()}"
        out.mkdir(exist_ok=True)
        torch.manual_seed(0)
        network = Sana(network_config(chosen.network, 2, 3, 6))
        teacher = Teacher(Sana(network_config(chosen.network, 4, 3, 6)), (1, 3)) if taught else None
        with closing(open_spool(folder / f"spool-{ranks.rank()}", "pretrain", tags={})) as spool:
            context = Context("pretrain", chosen, out, out / "state", Tracker(spool), "cpu", 1)
            Trainer(context, network, folder / paths.ENCODED, chosen.pretrain, teacher).run()
        AcceleratorState._reset_state(reset_partial_state=True)


def train_with_adamw_and_a_teacher(folder: Path) -> None:
    train_with_adamw(folder, taught=True)


@pytest.mark.parametrize("train", [train_with_adamw, train_with_adamw_and_a_teacher])
def test_where_no_rounding_is_blown_up_all_weights_are_those_of_one_process(
    tmp_path: Path, train: Callable[[Path], None]
) -> None:
    write_encoded(tmp_path, train=37)
    write_smoke(tmp_path, FLOAT32 | SHORT)
    train(tmp_path)
    run_processes(2, tmp_path, train)
    expected = load_file(tmp_path / "ddp-1" / "model.safetensors")
    for parallelism in PARALLELISMS:
        found = load_file(tmp_path / f"{parallelism}-2" / "model.safetensors")
        for name in expected:
            # AdamW divides by the size of gradients too: of seeds 0 to 3 the worst entry differs by 1.8e-5, where a
            # step moves each by up to 2e-3
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=5e-5)
        losses = [
            (tmp_path / f"{kind}" / "heldout.csv").read_text().splitlines()[-1]
            for kind in ("ddp-1", f"{parallelism}-2")
        ]
        one, two = (float(line.split(",")[2]) for line in losses)
        assert abs(one - two) < 1e-6


def test_after_a_signal_one_process_goes_on_from_what_two_have_saved(encoded: Path, one: Path) -> None:
    often = {"pretrain.checkpoint_every": 3}
    folder = workspace(encoded, "signal", TWO | often | {"compute.parallelism": "fully_shard"})
    process = stage_process(folder, "tasks.pretrain")
    wait_for_state(folder, process)
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert output.splitlines()[-1].endswith("stopped by SIGTERM; run the same command to resume")
    assert not ranks_of(folder) and not (folder / paths.SMALL).exists()
    assert len(list(state_of(folder)[0].glob("rows-*"))) == 2
    write_smoke(folder, FLOAT32 | often)
    assert "resuming after step" in finish(stage_process(folder, "tasks.pretrain"))
    assert (column(folder, "heldout.csv", 2) - column(one, "heldout.csv", 2)).abs().max() < 1e-3


def test_a_rank_that_is_killed_ends_the_stage_with_its_name_and_the_stage_resumes_to_the_bit(
    encoded: Path, two: dict[str, Path]
) -> None:
    folder = workspace(encoded, "killed", TWO | {"compute.parallelism": "fully_shard"})
    process = stage_process(folder, "tasks.pretrain")
    wait_for_state(folder, process)
    os.kill(ranks_of(folder)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    expected = "pretrain: rank 1 of 2 was killed by SIGKILL; all ranks were stopped: run the same command to resume"
    assert output.splitlines()[-1] == expected
    assert not ranks_of(folder)
    assert "resuming after step" in finish(stage_process(folder, "tasks.pretrain"))
    assert small_model(folder) == small_model(two["fully_shard"])


def test_ranks_die_with_the_process_that_was_asked_for_the_stage_and_keep_its_gpu_until_then(
    encoded: Path,
) -> None:
    folder = workspace(encoded, "orphans", TWO | {"pretrain.steps": 100000, "pretrain.checkpoint_every": 10})
    lease = folder / "gpu.lock"
    with open(lease, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.pretrain"],
            cwd=folder,
            env=environment() | {LEASE_VARIABLE: str(file.fileno())},
            pass_fds=[file.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    while not state_of(folder):
        assert process.poll() is None
        time.sleep(0.02)
    here = ranks_of(folder)
    assert len(here) == 2 and all(Path(f"/proc/{pid}/fd/0").resolve() == lease for pid in here)
    process.kill()
    process.wait()
    wait_for(lambda: not ranks_of(folder), "the ranks to end")


def test_an_error_of_one_rank_is_the_last_line_with_its_number(encoded: Path) -> None:
    folder = workspace(encoded, "error", TWO)
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from tasks.training.training_loop import Trainer\n"
        "    update = Trainer.update\n"
        "    def update_that_breaks(self):\n"
        "        if self.step == 3:\n"
        "            raise ValueError('a fault\\nof two lines')\n"
        "        return update(self)\n"
        "    Trainer.update = update_that_breaks\n"
    )
    process = stage_process(folder, "tasks.pretrain", PYTHONPATH=f"{folder}{os.pathsep}{PROJECT}")
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("pretrain: rank 1 of 2 failed: ValueError: a fault of two lines; ")
    assert "Traceback" in output


def test_a_loss_that_is_not_finite_is_the_bad_input_that_it_is_on_one_process(encoded: Path) -> None:
    folder = workspace(encoded, "diverged", TWO | {"pretrain.learning_rate": 1e30, "pretrain.checkpoint_every": 1})
    process = stage_process(folder, "tasks.pretrain")
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert "no update was made" in output.splitlines()[-1] and "Traceback" not in output
    for tensor in load_file(state_of(folder)[-1] / "network.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_more_nodes_than_a_job_of_slurm_has_are_refused_in_one_line(encoded: Path) -> None:
    folder = workspace(encoded, "nodes", {"compute.nodes": 2})
    output, _ = (process := stage_process(folder, "tasks.pretrain", SLURM_JOB_NUM_NODES="1")).communicate(
        timeout=PATIENCE_SECONDS
    )
    assert process.returncode == 2
    last = "pretrain: params.yaml: compute.nodes is 2 but this job of Slurm has 1: submit one with sbatch --nodes=2"
    assert output.splitlines()[-1] == last


# states: what any number of ranks have saved, any other loads

OPTIMIZERS = ("came8bit", "adamw")


def trained(optimizer: str, sharded: bool) -> tuple[Sana, Ema, torch.optim.Optimizer]:
    """A network, its average and its optimizer before the first step; 130 rows are more than a block of CAME-8bit."""
    torch.manual_seed(0)
    network = Sana(NetworkConfig(3, 64, 2, 16, 4, 2.0, 1, 130, True, "diffusers"))
    if sharded:
        shard(network, FlowMatchingLoss(network), "cpu")
    return network, Ema(network, 0.5), build_optimizer(optimizer, network.parameters(), 1e-3, 0.1)


def contents(network: Sana, ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All rows of all that a state holds."""
    tensors = {**network.state_dict(), **{f"ema {name}": tensor for name, tensor in ema.state().items()}}
    for place, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{place} {key}": value for key, value in values.items()}
    return {name: gathered(tensor).detach().clone() for name, tensor in tensors.items()}


def save_after_two_steps(folder: Path) -> None:
    for name in OPTIMIZERS:
        network, ema, optimizer = trained(name, sharded=ranks.world_size() > 1)
        for step in range(2):
            for place, parameter in enumerate(network.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * step + place))
                parameter.grad = torch.zeros_like(parameter)
                rows = local(parameter.grad)
                rows.copy_(noise[first_row(parameter) : first_row(parameter) + len(rows)])
            optimizer.step()
            ema.update(step + 1)
        save_state(folder / name, 2, network, ema, optimizer, History(recent=[0.5]))
        torch.save(contents(network, ema, optimizer), folder / f"{name}-{ranks.rank()}.pt")


def check_loaded(folder: Path) -> None:
    for name in OPTIMIZERS:
        network, ema, optimizer = trained(name, sharded=ranks.world_size() > 1)
        step, history = load_state(folder / name, network, ema, optimizer)
        assert (step, history.recent) == (2, [0.5])
        expected, found = torch.load(folder / f"{name}-0.pt", weights_only=True), contents(network, ema, optimizer)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
        if name == "came8bit":
            assert all(group["steps"] == 2 for group in optimizer.param_groups)
            assert any(key.endswith("momentum_codes") for key in found)


@pytest.mark.parametrize(("saved", "loaded"), [(2, (1, 2, 3)), (1, (2,))])
def test_a_state_loads_bit_for_bit_at_another_world_size(tmp_path: Path, saved: int, loaded: tuple[int, ...]) -> None:
    run_processes(saved, tmp_path, save_after_two_steps)
    for count in loaded:
        run_processes(count, tmp_path, check_loaded)


# evaluation


@pytest.fixture
def drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def evaluate(folder: Path) -> None:
    params, out = load_params(), folder / f"pool-{ranks.world_size()}"
    out.mkdir(exist_ok=True)
    with closing(open_spool(SPOOLS, "evaluate", tags={})) as spool:
        run_evaluate(Context("evaluate", params, out, Path("state"), Tracker(spool), "cpu", 1), "grown")


@pytest.mark.parametrize("count", [2, 3])
def test_an_evaluation_on_several_ranks_gives_the_bytes_of_one(drawing: Path, count: int) -> None:
    write_workspace()
    evaluate(drawing)
    run_processes(count, drawing, evaluate)
    alone, together = all_bytes(drawing / "pool-1"), all_bytes(drawing / f"pool-{count}")
    assert alone == together and {"pictures.npy", "pool.safetensors", "results.jsonl", "summary.json"} <= set(alone)

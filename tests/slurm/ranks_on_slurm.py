"""A stage on two nodes of a real Slurm: `make test-slurm`, as `sweeps_on_slurm.py`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import SlurmCluster, wait_for

from tasks.system import paths
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT, stage_process, write_encoded, write_params

CHANGES = {
    "compute.device": "cpu",
    "compute.threads": 1,
    "compute.parallelism": "fully_shard",
    "network.hidden_size": 64,
    "network.cross_heads": 4,
    "pretrain.depth": 2,
    "pretrain.steps": 60,
    "pretrain.batch_size": 8,
    "pretrain.warmup_steps": 5,
    "pretrain.checkpoint_every": 6,
    "pretrain.evaluate_every": 30,
}
SCRIPT = f"""#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1500M
#SBATCH --output=log
#SBATCH --open-mode=append
exec {sys.executable} -m tasks.pretrain
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace whose stage `pretrain` computes on two nodes."""
    write_params(tmp_path, CHANGES | {"compute.nodes": 2})
    write_encoded(tmp_path, train=37)
    (tmp_path / "job.sh").write_text(SCRIPT)
    return tmp_path


def submit(cluster: SlurmCluster, folder: Path) -> str:
    environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        ["sbatch", "--parsable", "job.sh"], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def wait_for_end(cluster: SlurmCluster, job: str) -> str:
    at_work = ("PENDING", "RUNNING", "COMPLETING")
    wait_for(lambda: cluster.jobs()[job][1] not in at_work, f"job {job} to end", seconds=120)
    return cluster.jobs()[job][1]


def steps(folder: Path) -> list[int]:
    states = (folder / paths.STATE / "state" / "pretrain").glob("*/step-*")
    return sorted(int(state.name.removeprefix("step-")) for state in states)


def ranks(folder: Path) -> dict[int, tuple[int, str]]:
    """Process and node of each rank of a workspace."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            here = (process / "cwd").resolve() == folder.resolve()
            lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        if here and b"tasks.runtime.rank_worker" in arguments:
            variables = dict(line.partition("=")[::2] for line in lines)
            found[int(variables["RANK"])] = (int(process.name), variables["SLURMD_NODENAME"])
    return found


def test_a_stage_on_two_nodes_survives_a_cancelled_job_and_a_killed_rank_and_ends_as_on_one_node(
    cluster: SlurmCluster, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = folder / "log"
    job = submit(cluster, folder)
    wait_for(lambda: bool(steps(folder)), "a checkpoint")
    assert {node for _, node in ranks(folder).values()} == {"node1", "node2"}
    cluster.ask("scancel", job)
    assert wait_for_end(cluster, job) == "CANCELLED"
    assert log.read_text().splitlines()[-1] == "pretrain: stopped by SIGTERM; run the same command to resume"
    stopped = steps(folder)[-1]
    assert not ranks(folder)

    job = submit(cluster, folder)
    wait_for(lambda: steps(folder)[-1] > stopped, "a later checkpoint")
    os.kill(ranks(folder)[1][0], signal.SIGKILL)
    assert wait_for_end(cluster, job) == "FAILED"
    last = "pretrain: rank 1 of 2 was killed by SIGKILL; all ranks were stopped: run the same command to resume"
    assert log.read_text().splitlines()[-1] == last
    assert not ranks(folder)

    assert wait_for_end(cluster, submit(cluster, folder)) == "COMPLETED", log.read_text()
    assert "resuming after step" in log.read_text()

    alone = tmp_path_factory.mktemp("one_node")
    write_params(alone, CHANGES | {"compute.processes_per_node": 2})
    write_encoded(alone, train=37)
    output, _ = (process := stage_process(alone, "tasks.pretrain")).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    for name in ("model.safetensors", "heldout.csv"):
        assert (folder / paths.SMALL / name).read_bytes() == (alone / paths.SMALL / name).read_bytes()

"""Starts several processes (ranks) for one stage, on this machine or on all nodes of a Slurm job.

The process that was asked for the stage does what is done once: lock, checks, tracker, manifest, publishing. Its ranks
(`tasks.runtime.rank_worker`) compute, and rank 0 writes into the stage's folder. torchrun's agent starts and watches
them. They read what they need from `job.json`, and each leaves a file that says how it ended. A watcher
(`tasks.runtime.hang_watch`) kills the ranks of its node if they hang, and leaves a file that names the one at fault.

On several nodes, `python -m tasks.runtime.launch_ranks FOLDER ENDPOINT` is the agent of one of them.
"""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tasks.params.experiment_params import Params
from tasks.params.params_files import build_params
from tasks.runtime.context import Context, Interrupted, Metrics
from tasks.runtime.hang_watch import WatchJob, limits_of, watched
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT
from tasks.system.file_locks import wait_until_unlocked
from tasks.system.files import read_json, write_json
from tasks.system.heartbeat import FOLDER_VARIABLE
from tasks.system.processes import LEASE_VARIABLE, PARENT_VARIABLE

JOB = "job.json"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit codes of ranks that were stopped by a signal and did not fail."""


class RankFailed(Exception):
    """A rank ended before its work was done, and all others were stopped. The message names it and says why."""


@dataclass(frozen=True)
class Job:
    """All that a rank needs to know of the stage: the fields of its context, with the file of its tracker's spool."""

    name: str
    params: Params
    out: Path
    state: Path
    spool: Path
    device: str
    threads: int

    def write(self, folder: Path) -> None:
        """Write the job into the folder of the ranks."""
        values = dataclasses.asdict(self)
        write_json(
            folder / JOB, {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        )


def read_job(folder: Path) -> Job:
    """The job in a folder of ranks."""
    values = read_json(folder / JOB)
    folders = {name: Path(values[name]) for name in ("out", "state", "spool")}
    return Job(**values | folders | {"params": build_params(values["params"], str(folder / JOB))})


def launch(context: Context) -> tuple[Metrics, int]:
    """Compute a stage on all processes that its params ask for.

    Returns its metrics, and the peak memory in bytes of the rank that took most.

    Raises RankFailed for the rank that failed first, UserError for its bad input, and Interrupted after a signal.
    """
    folder = (paths.STATE / "ranks" / context.name).resolve()
    wait_until_unlocked(lock_of(folder))  # if an earlier run was killed, its ranks still save their state
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = Job(
        context.name, context.params, context.out, context.state, context.tracker.path, context.device, context.threads
    )
    job.write(folder)
    compute = context.params.compute
    if compute.nodes == 1:
        run_agent(folder, job)
    else:
        run_on_nodes(folder, job)
    ended = [read_json(path) for path in sorted(folder.glob("rank-*.json"))]
    if len(ended) != compute.world_size or any(rank["exitcode"] for rank in ended):
        raise failure(folder, compute.world_size)
    shutil.rmtree(folder)
    return next(rank["metrics"] for rank in ended if rank["rank"] == 0), max(rank["peak_memory"] for rank in ended)


def lock_of(folder: Path) -> Path:
    """The lock that all ranks of a folder have while they live."""
    return folder.with_name(f"{folder.name}.lock")


def run_agent(folder: Path, job: Job, endpoint: str = "") -> None:
    """Start this node's ranks, and wait until all have ended. If one fails, the others are stopped.

    The agent passes a signal on to them. Interrupted is raised when they have ended, after 30 seconds at most.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    compute = job.params.compute
    with (
        tempfile.TemporaryDirectory() as local,
        tempfile.TemporaryDirectory(prefix="sana15-heartbeat-") as records,
        signals_as_before(),
        watched(watch_job(folder, job, records)),
    ):
        os.environ.update(rank_environment(job) | {FOLDER_VARIABLE: records})
        if (lease := os.environ.get(LEASE_VARIABLE)) is not None:
            # its children inherit the lease as their standard input, since torchrun passes on no other files
            os.dup2(int(lease), 0)
        store = str(Path(local, "store"))
        config = LaunchConfig(
            min_nodes=compute.nodes,
            max_nodes=compute.nodes,
            nproc_per_node=compute.processes_per_node,
            run_id=job.name,
            max_restarts=0,
            rdzv_backend="c10d",
            rdzv_endpoint=endpoint or store,
            rdzv_configs={"is_host": os.environ.get("SLURM_NODEID") == "0"} if endpoint else {"store_type": "file"},
        )
        meeting = [] if endpoint else [f"{store}-ranks"]
        try:
            elastic_launch(config, sys.executable)("-m", "tasks.runtime.rank_worker", str(folder), *meeting)
        except ChildFailedError as error:
            failures = {rank: [ended.timestamp, ended.exitcode] for rank, ended in error.failures.items()}
            write_json(folder / f"failures-{min(failures)}.json", failures)
        except SignalException as error:
            raise Interrupted(error.sigval) from None


def watch_job(folder: Path, job: Job, records: str) -> WatchJob:
    """What the watcher of this node's ranks must know. Its report goes to the folder of the ranks."""
    compute = job.params.compute
    report = folder / f"hang-{os.environ.get('SLURM_NODEID', '0')}.json"
    stacks = paths.hang_stacks(job.name)
    return WatchJob(job.name, compute.world_size, records, str(stacks), str(report), limits_of(compute.compile))


def rank_environment(job: Job) -> dict[str, str]:
    """The variables for ranks: their parent's id, their number of threads, and, on one node, the loopback interface."""
    environment = {PARENT_VARIABLE: str(os.getpid()), "OMP_NUM_THREADS": str(job.threads)}
    if job.params.compute.nodes == 1 and sys.platform == "linux":
        environment |= {f"{library}_SOCKET_IFNAME": "lo" for library in ("GLOO", "NCCL")}
    return environment


@contextmanager
def signals_as_before() -> Iterator[None]:
    """Put back, at the end of the `with` block, the signal handlers that the agent replaces."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_on_nodes(folder: Path, job: Job) -> None:
    """Start an agent on every node of this Slurm job, and wait for them. Raises UserError if it has too few nodes."""
    nodes, allocated = job.params.compute.nodes, int(os.environ.get("SLURM_JOB_NUM_NODES", 0))
    if nodes > allocated:
        found = f"this job of Slurm has {allocated}" if allocated else "this is no job of Slurm"
        raise UserError(f"params.yaml: compute.nodes is {nodes} but {found}: submit one with sbatch --nodes={nodes}")
    command = ["srun", "--kill-on-bad-exit=1", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if (cpus := os.environ.get("SLURM_CPUS_PER_TASK")) is not None:  # srun does not take this over by itself
        command.append(f"--cpus-per-task={cpus}")
    command += [sys.executable, "-m", __name__, str(folder), rendezvous(job.name)]
    environment = {name: value for name, value in os.environ.items() if name != PARENT_VARIABLE}
    with signals_as_before():
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        received: list[int] = []

        def pass_on(signum: int, _frame: FrameType | None) -> None:
            if not received:
                process.send_signal(signal.SIGUSR1)  # srun passes USR1 on; on TERM it would kill the agents at once
            received.append(signum)

        for number in SIGNALS:
            signal.signal(number, pass_on)
        process.wait()
    if received:
        raise Interrupted(received[0])


def rendezvous(name: str) -> str:
    """`address:port` where the agents meet, on the first node of this job. Job and stage determine the port."""
    listed = _output_of("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"])
    shown = _output_of("scontrol", "-o", "show", "node", listed.split()[0])
    address = dict(word.split("=", 1) for word in shown.split() if "=" in word)["NodeAddr"]
    return f"{address}:{20000 + zlib.crc32(' '.join([os.environ['SLURM_JOB_ID'], name]).encode()) % 10000}"


def failure(folder: Path, count: int) -> Exception:
    """The first failure of `count` ranks, as the exception that the stage raises.

    The first is the rank that ended in the earliest second. Within a second a rank that was killed comes before one
    that failed, since its death breaks the connections of the others. One that failed comes before one that was
    stopped. Among equals, the rank that wrote its file first comes first. If ranks were killed because they hung, the
    watcher's report says which is at fault.
    """
    for path in sorted(folder.glob("hang-*.json")):
        return RankFailed(read_json(path)["line"])
    ended: dict[int, tuple[int, int]] = {}
    for path in folder.glob("failures-*.json"):
        ended |= {int(rank): tuple(value) for rank, value in read_json(path).items()}
    reports: dict[int, dict[str, Any]] = {}
    for path in folder.glob("rank-*.json"):
        reports |= {(one := read_json(path))["rank"]: one}
    if not ended:
        return RankFailed("the ranks could not be started: see above")

    def place(rank: int) -> tuple[int, int, float]:
        time, code = ended[rank]
        kind = 2 if code in STOPPED else 1 if code > 0 else 0
        return time, kind, reports.get(rank, {}).get("time", math.inf)

    first = min(ended, key=place)
    code, error = ended[first][1], reports.get(first, {}).get("error")
    if code in STOPPED:
        return Interrupted(abs(code) % 128)
    if code == BAD_INPUT and error is not None:
        return UserError(error)
    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed: {error or f'exit code {code}'}"
    return RankFailed(f"rank {first} of {count} {ending}; all ranks were stopped: run the same command to resume")


def _output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{' '.join(command)} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def main() -> None:
    """Run the agent of one node. It exits with 1 if a rank failed, and with 128 + its number after a signal."""
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run_agent(folder, read_job(folder), sys.argv[2])
    except Interrupted as error:
        sys.exit(128 + error.signum)
    if any(folder.glob("failures-*.json")):
        sys.exit(1)


if __name__ == "__main__":
    main()

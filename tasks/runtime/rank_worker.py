"""One rank of a stage: `python -m tasks.runtime.rank_worker FOLDER [STORE]`, which torchrun's agent starts.

With the other ranks it computes the stage that `job.json` in FOLDER describes, and leaves there a file that says how it
ended. The ranks of one node meet in the file STORE, those of several nodes at the address that torchrun names. Each
writes down how far it is, for the watcher of its node.
"""

import os
import signal
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tasks.computing import ranks
from tasks.runtime.context import Context, Interrupted
from tasks.runtime.launch_ranks import Job, lock_of, read_job
from tasks.runtime.stage_run import computation_of
from tasks.runtime.torch_setup import configure_torch
from tasks.stages import stages_of
from tasks.system.errors import UserError, WorkerDied
from tasks.system.exit_codes import BAD_INPUT
from tasks.system.file_locks import keep_shared_lock
from tasks.system.files import write_json
from tasks.system.heartbeat import FOLDER_VARIABLE, end_heartbeat, start_heartbeat
from tasks.system.processes import exit_on_term_or_with_parent, peak_memory
from tasks.tracking.report_spool import join_spool
from tasks.tracking.tracker import Tracker

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in gloo and NCCL: the last resort, where no watcher sees that the stage hangs.

It must be longer than rank 0 takes to write the largest checkpoint, while the others wait.
"""


def compute(job: Job, store: str | None) -> dict[str, Any]:
    """Run the stage as one of its ranks; returns its metrics and this process's peak memory in bytes."""
    # DDP warns of depth-wise kernels, in which a stride means nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if job.device == "cuda":
        take_gpu(job)
    device = configure_torch(job.params, job.threads)
    join(job, device, store)
    first = ranks.rank() == 0
    if not first:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # one rank's progress lines are enough
    tracker = Tracker(join_spool(job.spool if first else Path(os.devnull)))
    context = Context(job.name, job.params, job.out, job.state, tracker, device, job.threads)
    stage = stages_of(job.params)[job.name]
    metrics = computation_of(stage)(context, *stage.arguments)
    ranks.wait_for_all()
    return {"metrics": metrics if first else None, "peak_memory": peak_memory(device)}


def take_gpu(job: Job) -> None:
    """Make this rank's own GPU the one that `cuda` means. Raises UserError if there are more processes than GPUs."""
    local, found, asked = (
        int(os.environ["LOCAL_RANK"]),
        torch.cuda.device_count(),
        job.params.compute.processes_per_node,
    )
    if local >= found:
        raise UserError(f"params.yaml: compute.processes_per_node is {asked} but torch sees {found} CUDA devices here")
    torch.cuda.set_device(local)


def join(job: Job, device: str, store: str | None) -> None:
    """Form the group of all ranks, which uses gloo for tensors on the CPU and NCCL for tensors on a GPU.

    Raises RuntimeError if the ranks are not as many as params.yaml asks for.
    """
    asked = job.params.compute.world_size
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=dist.FileStore(store, asked) if store else None,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=COLLECTIVE_TIMEOUT,
    )
    met = ranks.gather(ranks.rank())
    if met != list(range(asked)):
        raise RuntimeError(f"params.yaml asks for {asked} processes, and the ranks that met are {met}")


def main() -> None:
    """Compute, write `rank-N.json`, and exit as a stage does. A rank that failed does not wait for the others."""
    exit_on_term_or_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm sends it to all processes of a step, but it is for the agent
    folder, store = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    rank = int(os.environ["RANK"])
    keep_shared_lock(lock_of(folder))
    start_heartbeat(Path(os.environ[FOLDER_VARIABLE]), rank)
    code, said = 1, {}
    try:
        said = compute(read_job(folder), store)
        code = 0
    except Interrupted as error:
        code, said = 128 + error.signum, {"error": str(error)}
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except UserError as error:
        code, said = BAD_INPUT, {"error": str(error)}
    except WorkerDied as error:
        said = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        said = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    end_heartbeat()
    write_json(folder / f"rank-{rank}.json", {"rank": rank, "time": time.time(), "exitcode": code, **said})
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # a normal exit would wait for other ranks, which may be gone
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

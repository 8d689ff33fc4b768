"""Jobs of several gloo processes on this machine, for tests of what is distributed."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_processes(count: int, folder: Path, job: Callable[[Path], None]) -> None:
    """Run `job(folder)` in `count` processes of one group, on the CPU. An error in one raises here.

    They are forked from this one, which is quick, unless there is a GPU, which no forked process can use.
    """
    arguments, method = (count, folder, job), "spawn" if torch.cuda.is_available() else "fork"
    multiprocessing.start_processes(_enter, arguments, nprocs=count, start_method=method)


def _enter(rank: int, count: int, folder: Path, job: Callable[[Path], None]) -> None:
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / f"store-{count}-{job.__name__}"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        job(folder)
    finally:
        dist.destroy_process_group()

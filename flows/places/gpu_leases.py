"""GPUs of this machine, lent one at a time: a lock on a file for each, which the system lets go of when its holder and
all that it started are gone.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.building.fork_server import GPU_DEVICES
from tasks.system.file_locks import try_to_lock

FOLDER = Path(tempfile.gettempdir()) / f"sana15-gpus-{os.getuid()}"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The ids of the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all that torch sees."""
    if (named := os.environ.get(VISIBLE)) is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    if not any(Path(path).exists() for path in GPU_DEVICES):
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def lease(gpus: Sequence[str], folder: Path = FOLDER) -> tuple[str, int] | None:
    """A free GPU of these and the open file that keeps it; None if all are taken.

    Whoever inherits the file keeps the GPU too. It lies on this machine's own disk, for all sweeps of this user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for gpu in gpus:
        descriptor = os.open(folder / f"{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        if try_to_lock(descriptor):
            return gpu, descriptor
        os.close(descriptor)
    return None

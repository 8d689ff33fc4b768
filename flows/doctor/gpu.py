"""Looks at the GPUs: whether the driver and PyTorch see them, and whether params ask for one that is not there."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from flows.doctor.finding import Finding, fine
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.system.errors import UserError

DRIVER_TOOL = "nvidia-smi"
ANSWER_SECONDS = 30.0


def look(project: Path) -> Iterator[Finding]:
    """A line on the driver, and one on PyTorch if the driver has a GPU."""
    if shutil.which(DRIVER_TOOL) is None:
        yield without_gpu(project)
        return
    query = (DRIVER_TOOL, "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader")
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        yield Finding(
            f"{DRIVER_TOOL} does not answer within {ANSWER_SECONDS:.0f} seconds: the GPU hangs, restart the host"
        )
        return
    said = [line.strip() for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    if answer.returncode != 0:
        yield Finding(f"{DRIVER_TOOL} says: {said[0] if said else 'nothing'}: restart the host, or mend its driver")
        return
    import torch  # only where there is a GPU, since this takes seconds

    if torch.cuda.is_available():
        yield fine(f"PyTorch {torch.__version__} sees {'; '.join(said)}")
    else:
        yield Finding(
            f"the driver has {said[0]}, and PyTorch {torch.__version__} does not see it: install a CUDA build"
        )


def without_gpu(project: Path) -> Finding:
    """The line where there is no NVIDIA driver."""
    try:
        device = load_params(project / PARAMS_FILE).compute.device
    except UserError:  # the look at params says it
        device = "auto"
    if device == "cuda":
        return Finding(f"compute.device is cuda, and there is no {DRIVER_TOOL}: install the driver, or set auto")
    return fine("there is none: stages compute on the CPU")

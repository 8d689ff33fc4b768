"""Environment of every test: one CPU thread, no network, no telemetry, Triton's interpreter where there is no GPU."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven processes more, for jobs that we have none of
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as stages have it: without, torch refuses on a GPU

import pytest
import torch

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # or float32 convolutions on a GPU would be no reference
# a shell's background job ignores Ctrl-C, and so would all that the tests begin
signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    # read when a kernel is decorated, so it must be set before kernels are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


try:
    from hypothesis import settings
except ImportError:  # the kernels' tests pass on machines without it
    pass
else:
    # No deadline, since other processes may hold the machine, and no database: what was found is kept as an @example.
    settings.register_profile("short", max_examples=50, derandomize=True, deadline=None, database=None, print_blob=True)
    # `python -m pytest tests/fuzz --hypothesis-profile long` draws anew each time and prints the seed of a failure
    settings.register_profile("long", settings.get_profile("short"), max_examples=3_000, derandomize=False)
    settings.load_profile("short")


@pytest.fixture(autouse=True)
def process_of_its_own() -> Iterator[None]:
    """A stage has a process of its own, a test has not: accelerate keeps precision and device, torch its threads."""
    torch.set_num_threads(1)
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow with nothing in it, to be copied: to make one takes seconds."""
    import mlflow  # not at the top: the kernels' tests pass on machines without it

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path

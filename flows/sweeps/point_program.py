"""The program that runs one point: `python -m flows.sweeps.point_program`, in the point's folder.

`flows.sweeps.point_process` starts it on this machine, and the script of a Slurm job on a node of the cluster. It lies
in the point's folder with the rest of the code, so that an edit of the project does not change a point that waits.
"""

import flows.entry.prefect_environment  # noqa: F401

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from prefect import tags

from flows.entry.password import refuse_server_in_settings_file
from flows.entry.terminal import (
    FlowFailed,
    exit_on_term,
    keep_server_from_interrupts,
    reason_of,
    show_only_stage_lines,
)
from flows.full_pipeline import full_pipeline
from flows.sweeps.point_folder import ORDER_FILE, OUTCOME_FILE, POINT_LOCK, Outcome
from flows.sweeps.sweep_file import sweep_run_tag
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT, FAILED, complain
from tasks.system.file_locks import exclusive_lock
from tasks.system.files import read_json, write_json
from tasks.system.paths import RESULTS, STATE
from tasks.system.processes import die_with_parent

EARLIER_RUN_SECONDS = 60.0
"""How long an earlier run of this point that was killed may take to end all the processes that it had started."""


class RequeueOnNotice:
    """Puts a job back into Slurm's queue when its time limit is near.

    Slurm gives notice by USR1 some time before the limit. The process then ends as it would on TERM, and asks Slurm to
    requeue the job when everything is saved.
    """

    def __init__(self) -> None:
        self._wanted = False
        signal.signal(signal.SIGUSR1, self._note)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self._wanted = True
        os.kill(os.getpid(), signal.SIGTERM)

    def requeue_if_noticed(self) -> None:
        """Put the job back into the queue if Slurm gave notice."""
        if self._wanted and (job := os.environ.get("SLURM_JOB_ID")):
            subprocess.run(["scontrol", "requeue", job], check=False)


def main() -> int:
    """Run the point in the working directory and return the exit code: 0 done, 1 failed, 2 bad input."""
    die_with_parent()
    exit_on_term()
    requeue = RequeueOnNotice()
    show_only_stage_lines()
    try:
        refuse_server_in_settings_file()
        with exclusive_lock(POINT_LOCK, f"{Path.cwd()} is in use", EARLIER_RUN_SECONDS):
            await_earlier_stages()
            OUTCOME_FILE.unlink(missing_ok=True)
            order = read_json(ORDER_FILE)
            return _run(order["only"], order["remote"], order["point"])
    except UserError as error:
        return complain(error, BAD_INPUT)
    finally:
        requeue.requeue_if_noticed()


def await_earlier_stages() -> None:
    """Wait for stages that an earlier, killed run of this point has left behind. They save a checkpoint and end.

    Raises UserError if one of them still holds its lock after EARLIER_RUN_SECONDS.
    """
    for lock in (STATE / "locks").glob("*"):
        with exclusive_lock(lock, f"{lock.name} of an earlier run is still at work", EARLIER_RUN_SECONDS):
            pass


def _run(only: Sequence[str] | None, remote: bool, point: dict[str, Any]) -> int:
    started, code, reason = time.monotonic(), 0, ""
    try:
        keep_server_from_interrupts()
        with tags(sweep_run_tag(point["sweep"])):
            full_pipeline(only=only, remote=remote, point=point)
    except (UserError, FlowFailed) as error:
        code, reason = BAD_INPUT if isinstance(error, UserError) else FAILED, str(error)
    except Exception as error:
        code, reason = FAILED, reason_of(error) or f"{type(error).__name__}: {error}"
    models = model_records(only) if code == 0 else []
    write_json(OUTCOME_FILE, asdict(Outcome(" ".join(reason.split()), round(time.monotonic() - started, 1), models)))
    return complain(reason, code) if code else 0


def model_records(only: Sequence[str] | None) -> list[dict[str, Any]]:
    """The records of the models that this run has scored, in the form of the report's summary.

    A point that runs `only` some stages may have no report. Then the same records are made from the stages' outputs.
    """
    if only is None:
        return read_json(RESULTS / "summary.json")["models"]
    from tasks.reporting.report_numbers import model_record

    return [model_record(name) for kind, _, name in (stage.partition("@") for stage in only) if kind == "evaluate"]


if __name__ == "__main__":
    sys.exit(main())

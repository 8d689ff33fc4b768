"""Points as jobs of Slurm, named by their keys, watched through `squeue` and `scontrol`: no accounting is asked for."""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from flows.sweeps.place import QUERY_INTERVAL_SECONDS, SHARED_FOLDER_DELAY_SECONDS, PointState
from flows.sweeps.point_folder import LOG_FILE, MODULE, POINT_RECORDS, last_lines, outcome, point_environment
from flows.sweeps.points import Point
from flows.sweeps.sweep_file import Cluster
from tasks.system.errors import UserError
from tasks.system.files import write_bytes

SCRIPT = POINT_RECORDS / "job.sh"
NOTICE_SECONDS = 120
"""How long before its time limit a job is told; it saves a checkpoint and goes back into the queue."""
WAITING_STATES = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING_STATES = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING", "RESIZING"}
LOG_LINES = 3


class SlurmJobs:
    """The cluster as this user sees it; `tag` marks the jobs of one sweep. Raises UserError where Slurm is not."""

    def __init__(self, cluster: Cluster, tag: str) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("where is slurm but there is no sbatch: start the sweep on a host that submits to Slurm")
        self._cluster, self._tag = cluster, tag
        self._states: dict[str, str] = {}
        self._completed: dict[str, float] = {}
        self._asked_at, self._unanswered = 0.0, False

    def find_run(self, point: Point) -> str | None:
        """The job of this name that waits or runs."""
        for line in _output_of("squeue", "-h", "--me", "-t", "all", "-n", point.key, "-o", "%i %T").splitlines():
            job, state = line.split()
            if state in WAITING_STATES | RUNNING_STATES:
                return job
        return None

    def has_room(self) -> bool:
        """The queue has room for all."""
        return True

    def submit(self, point: Point) -> str:
        """Queue the point."""
        script = point.folder / SCRIPT
        write_bytes(script, job_script(point, self._cluster, self._tag).encode())
        job = _output_of("sbatch", "--parsable", str(script), env=point_environment(point.folder, elsewhere=True))
        self._asked_at = 0.0
        return job.strip().partition(";")[0]

    def state(self, point: Point, handle: str) -> PointState:
        """By the queue as long as the job is in it, then by the outcome in the point's folder."""
        state = self._job_states().get(handle)
        if state in WAITING_STATES:
            return PointState("queued")
        if state in RUNNING_STATES:
            return PointState("running")
        if (ended := outcome(point.folder)) is not None:
            return PointState("done") if ended.done else PointState("failed", ended.reason)
        if state == "COMPLETED":
            since = self._completed.setdefault(handle, time.monotonic())
            if time.monotonic() - since < SHARED_FOLDER_DELAY_SECONDS:
                return PointState("running")
        if state is None:
            return PointState("lost", f"Slurm knows no job {handle} any more, and it left no outcome")
        return PointState("failed", self._failure_reason(handle, state, point.folder))

    def cancel(self, handles: list[str]) -> None:
        """Cancel these jobs; Slurm sends them TERM, on which they save what they are at."""
        if handles:
            subprocess.run(["scancel", *handles], check=False, capture_output=True)

    def cancel_all(self) -> None:
        """Cancel every job that this sweep has submitted."""
        lines = _output_of("squeue", "-h", "--me", "-o", "%i|%k").splitlines()
        self.cancel([job for job, _, tag in (line.partition("|") for line in lines) if tag == self._tag])

    def _job_states(self) -> dict[str, str]:
        """The states of all of this user's jobs, by one question for all points; the last answer if none comes."""
        if time.monotonic() - self._asked_at > QUERY_INTERVAL_SECONDS:
            try:
                lines = _output_of("squeue", "-h", "--me", "-t", "all", "-o", "%i %T").splitlines()
                self._states, self._unanswered = dict(line.split() for line in lines), False
            except UserError as error:
                if not self._unanswered:
                    print(f"{error}: it is asked until it answers", file=sys.stderr, flush=True)
                self._unanswered = True
            self._asked_at = time.monotonic()
        return self._states

    def _failure_reason(self, job: str, state: str, folder: Path) -> str:
        """`Slurm job 12 ended TIMEOUT (reason TimeLimit, exit 0:15): the last lines of its log`."""
        shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=False)
        facts = dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)
        why = f"reason {facts.get('Reason', '?')}, exit {facts.get('ExitCode', '?')}"
        return f"Slurm job {job} ended {state} ({why}): {last_lines(folder, LOG_LINES) or 'it said nothing'}"


def job_script(point: Point, cluster: Cluster, tag: str) -> str:
    """What sbatch reads: a job that may be requeued, and goes on where it stopped when it is."""
    asked: dict[str, object | None] = {
        "job-name": point.key,
        "comment": tag,
        "chdir": point.folder,
        "output": point.folder / LOG_FILE,
        "open-mode": "append",
        "signal": f"B:USR1@{NOTICE_SECONDS}" if cluster.minutes is not None else None,
        "nodes": point.values["compute"]["nodes"],
        "ntasks-per-node": 1,
        "gres": f"gpu:{cluster.gpus}" if cluster.gpus else None,
        "cpus-per-task": cluster.cpus,
        "mem": cluster.memory,
        "time": cluster.minutes,
        "partition": cluster.partition,
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]
    command = f"exec {shlex.quote(sys.executable)} -m {MODULE}"
    return "\n".join(["#!/bin/bash", *lines, "#SBATCH --requeue", command, ""])


def _output_of(*command: str, env: dict[str, str] | None = None) -> str:
    """What a command of Slurm prints. Raises UserError with its own words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise UserError(f"{command[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout

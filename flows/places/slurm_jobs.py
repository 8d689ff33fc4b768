"""Points as jobs of Slurm. Each job has the point's key as its name, and is watched by `squeue` and `scontrol`.

Slurm's accounting (`sacct`) is not used, so the cluster need not keep any.
"""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from flows.sweeps.place_interface import QUERY_INTERVAL_SECONDS, SHARED_FOLDER_DELAY_SECONDS, PointState
from flows.sweeps.point_folder import LOG_FILE, MODULE, POINT_RECORDS, last_lines, outcome, point_environment
from flows.sweeps.points import Point
from flows.sweeps.sweep_file import Cluster
from tasks.system.errors import UserError
from tasks.system.files import write_bytes

SCRIPT = POINT_RECORDS / "job.sh"
NOTICE_SECONDS = 120
"""How long before its time limit Slurm gives a job notice. The job saves a checkpoint and goes back into the queue."""
WAITING_STATES = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING_STATES = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING", "RESIZING"}
LOG_LINES = 3
"""How many of the last lines of its log are shown for a job that failed."""


class SlurmJobs:
    """Runs points as jobs of this user. `tag` marks the jobs of one sweep.

    Raises UserError if this host has no Slurm.
    """

    def __init__(self, cluster: Cluster, tag: str) -> None:
        if shutil.which("sbatch") is None:
            raise UserError(
                "where is slurm, but there is no sbatch here: start the sweep on a host that submits to Slurm"
            )
        self._cluster, self._tag = cluster, tag
        self._states: dict[str, str] = {}
        self._completed: dict[str, float] = {}
        self._asked_at, self._unanswered = 0.0, False

    def find_run(self, point: Point) -> str | None:
        """The job with the point's key as its name that waits or runs. None if there is none."""
        for line in _output_of("squeue", "-h", "--me", "-t", "all", "-n", point.key, "-o", "%i %T").splitlines():
            job, state = line.split()
            if state in WAITING_STATES | RUNNING_STATES:
                return job
        return None

    def has_room(self) -> bool:
        """Always: Slurm's queue takes all points, and Slurm decides how many run at once."""
        return True

    def submit(self, point: Point) -> str:
        """Write the job's script and submit it. Returns the id of the job."""
        script = point.folder / SCRIPT
        write_bytes(script, job_script(point, self._cluster, self._tag).encode())
        job = _output_of("sbatch", "--parsable", str(script), env=point_environment(point.folder, elsewhere=True))
        self._asked_at = 0.0
        return job.strip().partition(";")[0]  # `--parsable` prints `ID` or `ID;CLUSTER`

    def state(self, point: Point, handle: str) -> PointState:
        """The state of the point: by the queue while the job is in it, then by the outcome in the point's folder."""
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
        """Cancel these jobs. Slurm sends them TERM, and they save a checkpoint."""
        if handles:
            subprocess.run(["scancel", *handles], check=False, capture_output=True)

    def cancel_all(self) -> None:
        """Cancel every job that this sweep has submitted."""
        lines = _output_of("squeue", "-h", "--me", "-o", "%i|%k").splitlines()
        self.cancel([job for job, _, tag in (line.partition("|") for line in lines) if tag == self._tag])

    def _job_states(self) -> dict[str, str]:
        """The states of all jobs of this user, by one query for all points. The last ones if Slurm does not answer."""
        if time.monotonic() - self._asked_at > QUERY_INTERVAL_SECONDS:
            try:
                lines = _output_of("squeue", "-h", "--me", "-t", "all", "-o", "%i %T").splitlines()
                self._states, self._unanswered = dict(line.split() for line in lines), False
            except UserError as error:
                if not self._unanswered:
                    print(f"{error}: asking again until it answers", file=sys.stderr, flush=True)
                self._unanswered = True
            self._asked_at = time.monotonic()
        return self._states

    def _failure_reason(self, job: str, state: str, folder: Path) -> str:
        """As in `Slurm job 12 ended TIMEOUT (reason TimeLimit, exit 0:15): the last lines of its log`."""
        shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=False)
        facts = dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)
        why = f"reason {facts.get('Reason', '?')}, exit {facts.get('ExitCode', '?')}"
        return f"Slurm job {job} ended {state} ({why}): {last_lines(folder, LOG_LINES) or 'it said nothing'}"


def job_script(point: Point, cluster: Cluster, tag: str) -> str:
    """The script for sbatch. Slurm may requeue the job, which then goes on from its last checkpoint."""
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
    # `--signal=B:` reaches the shell of the script alone. With `exec` the point's program takes the shell's place.
    command = f"exec {shlex.quote(sys.executable)} -m {MODULE}"
    return "\n".join(["#!/bin/bash", *lines, "#SBATCH --requeue", command, ""])


def _output_of(*command: str, env: dict[str, str] | None = None) -> str:
    """What a command of Slurm prints. Raises UserError with Slurm's own message if the command fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise UserError(f"{command[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout

"""Points as jobs of Slurm, named by their keys, watched through `squeue` and `scontrol`: no accounting is asked for."""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from flows.sweeps.place import LOOK_EVERY_SECONDS, SETTLE_SECONDS, State
from flows.sweeps.point_folder import LOG, MODULE, RECORDS, environment, last_lines, outcome
from flows.sweeps.points import Point
from flows.sweeps.sweep_file import Cluster
from tasks.system.errors import UserError
from tasks.system.files import write_bytes

SCRIPT = RECORDS / "job.sh"
NOTICE_SECONDS = 120
"""How long before its time limit a job is told; it saves a checkpoint and goes back into the queue."""
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
AT_WORK = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING", "RESIZING"}
LOG_LINES = 3


class Slurm:
    """The cluster as this user sees it; `tag` marks the jobs of one sweep. Raises UserError where Slurm is not."""

    def __init__(self, cluster: Cluster, tag: str) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("where is slurm but there is no sbatch: start the sweep on a host that submits to Slurm")
        self._cluster, self._tag = cluster, tag
        self._states: dict[str, str] = {}
        self._completed: dict[str, float] = {}
        self._looked, self._silent = 0.0, False

    def find(self, point: Point) -> str | None:
        """The job of this name that waits or runs."""
        for line in _ask("squeue", "-h", "--me", "-t", "all", "-n", point.key, "-o", "%i %T").splitlines():
            job, state = line.split()
            if state in WAITING | AT_WORK:
                return job
        return None

    def room(self) -> bool:
        """The queue has room for all."""
        return True

    def submit(self, point: Point) -> str:
        """Queue the point."""
        script = point.folder / SCRIPT
        write_bytes(script, job_script(point, self._cluster, self._tag).encode())
        job = _ask("sbatch", "--parsable", str(script), env=environment(point.folder, elsewhere=True))
        self._looked = 0.0
        return job.strip().partition(";")[0]

    def state(self, point: Point, handle: str) -> State:
        """By the queue as long as the job is in it, then by the outcome in the point's folder."""
        state = self._look().get(handle)
        if state in WAITING:
            return State("queued")
        if state in AT_WORK:
            return State("running")
        if (ended := outcome(point.folder)) is not None:
            return State("done") if ended.done else State("failed", ended.reason)
        if state == "COMPLETED":
            since = self._completed.setdefault(handle, time.monotonic())
            if time.monotonic() - since < SETTLE_SECONDS:
                return State("running")
        if state is None:
            return State("lost", f"Slurm knows no job {handle} any more, and it left no outcome")
        return State("failed", self._ending(handle, state, point.folder))

    def cancel(self, handles: list[str]) -> None:
        """Cancel these jobs; Slurm sends them TERM, on which they save what they are at."""
        if handles:
            subprocess.run(["scancel", *handles], check=False, capture_output=True)

    def cancel_all(self) -> None:
        """Cancel every job that this sweep has submitted."""
        lines = _ask("squeue", "-h", "--me", "-o", "%i|%k").splitlines()
        self.cancel([job for job, _, tag in (line.partition("|") for line in lines) if tag == self._tag])

    def _look(self) -> dict[str, str]:
        """The states of all of this user's jobs, by one question for all points; the last answer if none comes."""
        if time.monotonic() - self._looked > LOOK_EVERY_SECONDS:
            try:
                lines = _ask("squeue", "-h", "--me", "-t", "all", "-o", "%i %T").splitlines()
                self._states, self._silent = dict(line.split() for line in lines), False
            except UserError as error:
                if not self._silent:
                    print(f"{error}: it is asked until it answers", file=sys.stderr, flush=True)
                self._silent = True
            self._looked = time.monotonic()
        return self._states

    def _ending(self, job: str, state: str, folder: Path) -> str:
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
        "output": point.folder / LOG,
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


def _ask(*command: str, env: dict[str, str] | None = None) -> str:
    """What a command of Slurm prints. Raises UserError with its own words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise UserError(f"{command[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout

"""Points as processes of this machine, so many at once, each with a GPU of its own where there are any."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from flows.children import GRACE_SECONDS
from flows.sweeps.leases import VISIBLE, lease
from flows.sweeps.place import State
from flows.sweeps.points import Point
from flows.sweeps.running import LOCK, LOG, MODULE, environment, last_lines, outcome
from tasks.errors import UserError
from tasks.locks import hold
from tasks.stage import LEASE_VARIABLE, PARENT_VARIABLE


class Local:
    """At most `parallel` points at once, each on one of `gpus` unless there are none. They end with this process."""

    def __init__(self, parallel: int, gpus: Sequence[str]) -> None:
        self._parallel, self._gpus = parallel, gpus
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def find(self, point: Point) -> str | None:
        """A process that holds the point's folder: one that ends, since the sweep that began it is gone."""
        if not (point.folder / LOCK).exists():
            return None
        try:
            with hold(point.folder / LOCK, "held"):
                return None
        except UserError:
            return "another process"

    def room(self) -> bool:
        """Whether fewer run than may, and a GPU is free."""
        if sum(child.poll() is None for child in self._children.values()) >= self._parallel:
            return False
        if not self._gpus:
            return True
        if (leased := lease(self._gpus)) is not None:
            os.close(leased[1])
        return leased is not None

    def submit(self, point: Point) -> str | None:
        """Start the point's process, with a GPU if it is to have one."""
        own = environment(point.folder, elsewhere=False) | {PARENT_VARIABLE: str(os.getpid())}
        if not self._gpus:
            return self._start(point, own, [])
        leased = lease(self._gpus)
        if leased is None:
            return None
        gpu, descriptor = leased
        try:
            return self._start(point, own | {VISIBLE: gpu, LEASE_VARIABLE: str(descriptor)}, [descriptor])
        finally:
            os.close(descriptor)

    def _start(self, point: Point, own: dict[str, str], kept: list[int]) -> str:
        with open(point.folder / LOG, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                cwd=point.folder,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=kept,
            )
        self._children[str(child.pid)] = child
        return str(child.pid)

    def state(self, point: Point, handle: str) -> State:
        """By the process, if it is ours, or else by who holds the folder; and then by the outcome."""
        child = self._children.get(handle)
        if child.poll() is None if child is not None else self.find(point) is not None:
            return State("running")
        if (ended := outcome(point.folder)) is not None:
            return State("done") if ended.done else State("failed", ended.reason)
        if child is None:
            return State("lost", "its process is gone")
        how = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        return State("failed", f"ended by {how}: {last_lines(point.folder) or 'it said nothing'}")

    def cancel(self, handles: list[str]) -> None:
        """TERM these processes, and KILL those that take longer than a flow gives its own stages."""
        children = [self._children[handle] for handle in handles if handle in self._children]
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(GRACE_SECONDS + 15)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)

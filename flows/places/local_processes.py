"""Points as processes of this machine: a fixed number at once, each with a GPU of its own if there are GPUs."""

import os
from collections.abc import Sequence

from flows.places.gpu_leases import VISIBLE, lease
from flows.sweeps.place_interface import PointState
from flows.sweeps.point_folder import POINT_LOCK, outcome, point_environment
from flows.sweeps.point_process import PointProcess, end, how_it_ended, start
from flows.sweeps.points import Point
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.processes import LEASE_VARIABLE


class LocalProcesses:
    """Runs at most `parallel` points at once, each on one of `gpus` if there are any. They end with this process."""

    def __init__(self, parallel: int, gpus: Sequence[str]) -> None:
        self._parallel, self._gpus = parallel, gpus
        self._processes: dict[str, PointProcess] = {}

    def find_run(self, point: Point) -> str | None:
        """A handle if a process holds the lock of the point's folder. If its sweep is gone, that process is ending."""
        if not (point.folder / POINT_LOCK).exists():
            return None
        try:
            with exclusive_lock(point.folder / POINT_LOCK, "held"):
                return None
        except UserError:
            return "another process"

    def has_room(self) -> bool:
        """Whether fewer than `parallel` points run, and a GPU is free."""
        if sum(child.poll() is None for child in self._processes.values()) >= self._parallel:
            return False
        if not self._gpus:
            return True
        # A GPU counts as free if it can be leased. The lease is given back at once, and `submit` takes its own.
        if (leased := lease(self._gpus)) is not None:
            os.close(leased[1])
        return leased is not None

    def submit(self, point: Point) -> str | None:
        """Start the point's process, with a GPU of its own if there are GPUs. None if no GPU is free."""
        own = point_environment(point.folder, elsewhere=False)
        if not self._gpus:
            return self._keep(start(point.folder, own))
        leased = lease(self._gpus)
        if leased is None:
            return None
        gpu, descriptor = leased
        try:
            own |= {VISIBLE: gpu, LEASE_VARIABLE: str(descriptor)}
            return self._keep(start(point.folder, own, [descriptor]))
        finally:
            os.close(descriptor)  # the point's process has inherited the file, and its lock keeps the GPU

    def _keep(self, child: PointProcess) -> str:
        self._processes[str(child.pid)] = child
        return str(child.pid)

    def state(self, point: Point, handle: str) -> PointState:
        """The state of the point.

        It runs as long as its process lives, or, if another sweep started it, as long as its folder is locked. After
        that, the outcome in its folder decides.
        """
        child = self._processes.get(handle)
        if child.poll() is None if child is not None else self.find_run(point) is not None:
            return PointState("running")
        if (ended := outcome(point.folder)) is not None:
            return PointState("done") if ended.done else PointState("failed", ended.reason)
        if child is None:
            return PointState("lost", "its process is gone")
        return PointState("failed", how_it_ended(child, point.folder))

    def cancel(self, handles: list[str]) -> None:
        """End these processes. Training saves a checkpoint first."""
        end([self._processes[handle] for handle in handles if handle in self._processes])

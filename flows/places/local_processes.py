"""Points as processes of this machine, so many at once, each with a GPU of its own where there are any."""

import os
from collections.abc import Sequence

from flows.places.gpu_leases import VISIBLE, lease
from flows.sweeps.place import State
from flows.sweeps.point_folder import LOCK, environment, outcome
from flows.sweeps.point_process import PointProcess, end, ending, start
from flows.sweeps.points import Point
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.processes import LEASE_VARIABLE


class Local:
    """At most `parallel` points at once, each on one of `gpus` unless there are none. They end with this process."""

    def __init__(self, parallel: int, gpus: Sequence[str]) -> None:
        self._parallel, self._gpus = parallel, gpus
        self._children: dict[str, PointProcess] = {}

    def find(self, point: Point) -> str | None:
        """A process that holds the point's folder: one that ends, since the sweep that began it is gone."""
        if not (point.folder / LOCK).exists():
            return None
        try:
            with exclusive_lock(point.folder / LOCK, "held"):
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
        own = environment(point.folder, elsewhere=False)
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
            os.close(descriptor)

    def _keep(self, child: PointProcess) -> str:
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
        return State("failed", ending(child, point.folder))

    def cancel(self, handles: list[str]) -> None:
        """End these processes, each at a checkpoint."""
        end([self._children[handle] for handle in handles if handle in self._children])

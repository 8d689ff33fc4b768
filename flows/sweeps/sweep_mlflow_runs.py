"""A sweep in MLflow: a parent run, and for each point a nested run with its params and scores, or why it failed.

A point's run is opened when the point is first seen to run, so that the point's own stages and models are nested in it.
It is found by its tag, the point's key. Points that were done before get their run at the end.

A point may have several models, so a metric's name holds the model's name in its second place:
`geneval/<model>/overall`, or `best_of/<model>/<N>` for the best of N pictures. In the runs of the stage evaluate and of
the report, the same metrics have these names without the model's name.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.building.mlflow_runs import PREFECT_TAG
from flows.sweeps.place_interface import PointState
from flows.sweeps.points import SEED, Point
from flows.sweeps.sweep_file import Score, Sweep
from flows.sweeps.sweep_table import Row, rows_of
from tasks.system.paths import RESULTS
from tasks.tracking.mlflow_sender import Sender
from tasks.tracking.report_spool import POINT_TAG, SPOOLS, Spool, open_spool, status_after
from tasks.tracking.tracker import Tracker, run_tags

REASON_TAG = "sana15.reason"
MAX_REASON = 4000
"""A longer reason is cut to so many characters."""


class SweepRuns:
    """The runs of one sweep; see `open_sweep_run`."""

    def __init__(self, sender: Sender, parent: Spool, sweep: Sweep) -> None:
        self._sender, self._parent, self._sweep = sender, parent, sweep
        self._open_points: dict[str, Spool] = {}
        self._ended: set[str] = set()

    def note(self, point: Point, state: PointState) -> None:
        """Note a change of a point's state: its run is opened when it runs, and ended when it is done or has failed."""
        if state.phase == "running":
            self._run_of(point)
        if state.phase in ("done", "failed") and point.key not in self._ended:
            self._end(point, state)

    def finish(self, points: Sequence[Point], states: Mapping[str, PointState], plot: Path) -> None:
        """Log the plot, and make a run for each point that was done before this sweep began."""
        Tracker(self._parent).log_image("sweep", plot)
        for point in points:
            self.note(point, states[point.key])

    def _end(self, point: Point, state: PointState) -> None:
        spool = self._run_of(point)
        tracker = Tracker(spool)
        tracker.log_params({**point.setting, SEED: point.seed})
        for row in rows_of(self._sweep, point, state):
            numbers = {
                f"parameters/{row.model}": row.parameters,
                f"heldout_loss/{row.model}": row.heldout_loss,
                f"seconds/{row.model}": row.seconds,
                _score_name(row, self._sweep.score): row.score,
            }
            tracker.log_metrics({name: value for name, value in numbers.items() if value is not None}, row.pictures)
        if state.reason:
            spool.append("tags", values={REASON_TAG: state.reason[:MAX_REASON]})
        if (report := point.folder / RESULTS / "report.html").exists():
            spool.append_artifact(report)
        spool.append("end", status="FINISHED" if state.phase == "done" else "FAILED")
        del self._open_points[point.key]
        self._ended.add(point.key)

    def close(self, status: str) -> None:
        """End the sweep's run, and the runs of points that have no end, with this MLflow status."""
        for spool in [*self._open_points.values(), self._parent]:
            spool.append("end", status=status)

    def _run_of(self, point: Point) -> Spool:
        if point.key not in self._open_points:
            tags = run_tags("point", point.folder) | {POINT_TAG: point.key}
            spool = open_spool(SPOOLS, point.name, tags, self._parent.header["key"])
            self._sender.add(spool)
            self._open_points[point.key] = spool
        return self._open_points[point.key]


@contextmanager
def open_sweep_run(sweep: Sweep, flow_run_id: str) -> Iterator[SweepRuns]:
    """Open the sweep's run, which ends when the block ends, with its status."""
    tags = run_tags("sweep", Path.cwd()) | {PREFECT_TAG: flow_run_id}
    with Sender(SPOOLS) as sender:
        parent = open_spool(SPOOLS, f"sweep {sweep.title}", tags)
        sender.add(parent)
        Tracker(parent).log_params({"sweep": sweep.name, "profile": sweep.profile, "points": len(sweep.settings)})
        runs = SweepRuns(sender, parent, sweep)
        status = "FINISHED"
        try:
            yield runs
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            runs.close(status)


def _score_name(row: Row, score: Score) -> str:
    """The metric's name for the score of a row; see the module's docstring."""
    return f"best_of/{row.model}/{row.pictures}" if score == "best_of" else f"{row.scorer}/{row.model}/overall"

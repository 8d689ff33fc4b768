"""A sweep in MLflow: a parent run, and for each point a nested run with its params and scores, or why it failed.

A point may have several models, so a metric's name holds the model's name in its second place:
`geneval/<model>/overall`, or `best_of/<model>/<N>` for the best of N pictures. In the runs of the stage evaluate and of
the report, the same metrics have these names without the model's name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from flows.building.mlflow_runs import PREFECT_TAG
from flows.sweeps.points import SEED
from flows.sweeps.sweep_file import Score, Sweep
from flows.sweeps.sweep_table import Row
from tasks.tracking.mlflow_sender import Sender
from tasks.tracking.report_spool import SPOOLS, Spool, open_spool, status_after
from tasks.tracking.tracker import Tracker, run_tags

POINT_TAG = "sana15.point"
REASON_TAG = "sana15.reason"
MAX_REASON = 4000
"""A longer reason is cut to so many characters."""

RecordRows = Callable[[Sequence[Row], Path], None]


@contextmanager
def open_sweep_run(sweep: Sweep, flow_run_id: str) -> Iterator[RecordRows]:
    """Open the sweep's run, which ends when the block ends, with its status.

    The block gets a function that records the rows of the table and the plot.
    """
    tags = run_tags("sweep", Path.cwd()) | {PREFECT_TAG: flow_run_id}
    with Sender(SPOOLS) as sender:
        parent = open_spool(SPOOLS, f"sweep {sweep.title}", tags)
        sender.add(parent)
        Tracker(parent).log_params({"sweep": sweep.name, "profile": sweep.profile, "points": len(sweep.settings)})

        def record(rows: Sequence[Row], plot: Path) -> None:
            Tracker(parent).log_image("sweep", plot)
            for _, of_point in groupby(rows, key=lambda row: row.point):
                _record_point(sender, parent, list(of_point), sweep.score)

        status = "FINISHED"
        try:
            yield record
        except BaseException as error:
            status = status_after(error)
            raise
        finally:
            parent.append("end", status=status)


def _record_point(sender: Sender, parent: Spool, rows: Sequence[Row], score: Score) -> None:
    first = rows[0]
    tags = run_tags("point", Path(first.folder)) | {POINT_TAG: first.point}
    tags |= {REASON_TAG: first.reason[:MAX_REASON]} if first.reason else {}
    spool = open_spool(SPOOLS, f"point {first.point}", tags, parent.header["key"])
    sender.add(spool)
    tracker = Tracker(spool)
    tracker.log_params({**first.setting, SEED: first.seed})
    for row in rows:
        numbers = {
            f"parameters/{row.model}": row.parameters,
            f"heldout_loss/{row.model}": row.heldout_loss,
            f"seconds/{row.model}": row.seconds,
            _score_name(row, score): row.score,
        }
        known = {name: value for name, value in numbers.items() if value is not None}
        tracker.log_metrics(known, step=row.pictures)
    spool.append("end", status="FINISHED" if first.state == "done" else "FAILED")


def _score_name(row: Row, score: Score) -> str:
    """The metric's name for the score of a row; see the module's docstring."""
    return f"best_of/{row.model}/{row.pictures}" if score == "best_of" else f"geneval/{row.model}/overall"

"""A sweep as one Prefect flow: `python -m flows.sweep prune-depth`, or a run of its deployment.

`sweeps/<name>.yaml` says which parameters differ. What all points share is run once, then each point is a run of the
pipeline in a folder of its own: on this machine, as a job of Slurm, or in a work pool of Prefect. Started again, it
runs only what is missing or failed, and goes on with what still runs. A point that fails is reported and does not stop
the others.
"""

import flows.entry.prefect_environment  # noqa: F401

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from prefect import Flow, flow, get_run_logger
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run
from prefect.states import State as RunState

from flows.building.prefect_artifacts import best_effort
from flows.entry.terminal import LOGGER, FlowFailed, in_terminal
from flows.places.gpu_leases import visible_gpus
from flows.places.local_processes import Local
from flows.places.slurm_jobs import Slurm
from flows.places.sqlite_on_network import refuse_sqlite_over_network
from flows.places.work_pool import WorkPool
from flows.sweeps.follow_points import Told, finished, follow, write_folders
from flows.sweeps.place import Place, State
from flows.sweeps.points import Point, expand
from flows.sweeps.sweep_file import Sweep, read_sweep
from flows.sweeps.sweep_mlflow_runs import recorded
from flows.sweeps.sweep_plot import draw
from flows.sweeps.sweep_table import Row, Setting, rows_of, settings_of, write_table
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.files import write_bytes
from tasks.system.paths import RESULTS, STATE

Where = Literal["local", "slurm", "work-pool"]
Log = Callable[[str], None]


def cancel_jobs(flow: Flow, flow_run: FlowRun, state: RunState) -> None:
    """When Prefect cancels the flow: it may kill the flow's process, and runs elsewhere would live on."""
    given = flow_run.parameters
    plan = read_sweep(Path.cwd(), given["name"], given.get("profile"))
    if given.get("where") == "slurm":
        open_slurm(Path.cwd(), plan).cancel_all()
    if given.get("where") == "work-pool":
        open_pool(Path.cwd(), plan, given.get("pool")).cancel_all()


@flow(name="sana15-sweep", persist_result=True, result_serializer="json", on_cancellation=[cancel_jobs])
def sweep(
    name: str,
    profile: str | None = None,
    where: Where = "local",
    parallel: int | None = None,
    gpus: list[str] | None = None,
    pool: str | None = None,
) -> dict[str, Any]:
    """Run a sweep; see the module's docstring.

    Args:
        name: a file of `sweeps/`.
        profile: a file of `profiles/` in place of the sweep's own.
        where: local (processes of this machine), slurm, or work-pool (flow runs in a work pool of Prefect).
        parallel: local only: how many points at once; by default as many as there are GPUs, or one.
        gpus: local only: ids of the GPUs to use, in place of all that can be seen.
        pool: work-pool only: the pool's name, in place of the one in the sweep's file.

    Returns the folder of the results, and how many points ended how.
    """
    project = Path.cwd()
    plan = read_sweep(project, name, profile)
    points = expand(project, plan)
    place = open_place(project, plan, where, parallel, gpus, pool)
    log = get_run_logger().getChild(LOGGER).info
    with (
        exclusive_lock(project / STATE / "sweeps" / f"{plan.title}.lock", f"sweep {plan.title} is being run here"),
        recorded(plan, str(flow_run.id)) as record,
    ):
        states = run_points(project, points, place, Telling(log, points))
        rows = [row for point in points for row in rows_of(plan, point, states[point.key])]
        settings = settings_of(rows)
        folder = write_results(project, plan, rows, settings)
        record(rows, folder / "plot.png")
        with best_effort(log):
            publish(plan, rows, settings)
        log(f"table and plot are in {folder}")
        raise_failures(points, states)
    return {"results": str(folder), "points": dict(Counter(state.phase for state in states.values()))}


def open_place(
    project: Path, plan: Sweep, where: Where, parallel: int | None, gpus: Sequence[str] | None, pool: str | None
) -> Place:
    """Where the points will run. Raises UserError where that is impossible."""
    if pool is not None and where != "work-pool":
        raise UserError(f"pool is for where work-pool, not {where}")
    if where != "local":
        if parallel is not None or gpus is not None:
            raise UserError(f"parallel and gpus are for where local, not {where}: its queue and workers decide")
        refuse_sqlite_over_network(where)
        if where == "slurm":
            return open_slurm(project, plan)
        (workers := open_pool(project, plan, pool)).check()
        return workers
    if parallel is not None and parallel < 1:
        raise UserError(f"parallel is {parallel}: it must be above 0")
    seen = list(gpus) if gpus is not None else visible_gpus()
    return Local(parallel or max(1, len(seen)), seen)


def open_slurm(project: Path, plan: Sweep) -> Slurm:
    """The cluster, with this sweep's mark on its jobs."""
    return Slurm(plan.cluster, mark(project, plan))


def open_pool(project: Path, plan: Sweep, pool: str | None) -> WorkPool:
    """The work pool, with this sweep's mark on its flow runs."""
    if (pool := pool or plan.cluster.pool) is None:
        raise UserError(
            f"where is work-pool but none is named: --pool NAME, or cluster.pool in sweeps/{plan.name}.yaml"
        )
    return WorkPool(project, pool, plan.cluster, mark(project, plan))


def mark(project: Path, plan: Sweep) -> str:
    """What tells the runs of a sweep from others."""
    return f"sana15 sweep {plan.title} of {project}"


def run_points(project: Path, points: Sequence[Point], place: Place, told: Told) -> dict[str, State]:
    """Run the shared stages of what is missing, then the points themselves; returns where each point ended, by key."""
    shared = shared_by(points)
    write_folders(project, [*shared, *points], place)
    before = follow(project, shared, place, told)
    blocked = {
        point.key: State("failed", f"{point.shared.label}: {before[point.shared.key].reason}")
        for point in points
        if point.shared is not None and before.get(point.shared.key, State("done")).phase != "done"
    }
    for point in points:
        if point.key in blocked:
            told(point, blocked[point.key])
    return follow(project, [point for point in points if point.key not in blocked], place, told) | blocked


def shared_by(points: Sequence[Point]) -> list[Point]:
    """The runs of shared stages that have yet to be done for some of the points."""
    waiting = (point.shared for point in points if point.shared is not None and not finished(point))
    return list({shared.key: shared for shared in waiting if not finished(shared)}.values())


class Telling:
    """Says every change on the terminal, and how many runs are over on Prefect's page."""

    def __init__(self, log: Log, points: Sequence[Point]) -> None:
        missing = sum(not finished(point) for point in points)
        log(f"{len(points) - missing} of {len(points)} points are done, {missing} are to run")
        self._log, self._over, self._total = log, 0, len(shared_by(points)) + missing
        with best_effort(log):
            self._artifact = create_progress_artifact(0.0, key="sweep", description=f"0 of {self._total} runs")

    def __call__(self, point: Point, state: State) -> None:
        """Tell one change."""
        self._log(f"{point.label} ({point.key}): {state.phase}" + (f": {state.reason}" if state.reason else ""))
        if state.phase in ("done", "failed"):
            self._over += 1
            with best_effort(self._log):
                done = f"{self._over} of {self._total} runs"
                update_progress_artifact(self._artifact, 100.0 * self._over / self._total, description=done)


def write_results(project: Path, plan: Sweep, rows: Sequence[Row], settings: Sequence[Setting]) -> Path:
    """Write `table.csv` and `plot.png`; returns their folder, `results/sweeps/<title>`."""
    folder = project / RESULTS / "sweeps" / plan.title
    write_table(folder / "table.csv", plan, rows, settings)
    write_bytes(folder / "plot.png", draw(plan.title, settings))
    return folder


def publish(plan: Sweep, rows: Sequence[Row], settings: Sequence[Setting]) -> None:
    """The settings as a table on Prefect's page, and below it the points that failed."""
    scored = [asdict(one) for one in settings]
    failed = [{"label": row.point, "reason": row.reason} for row in rows if row.state != "done"]
    key = re.sub("[^a-z0-9]+", "-", f"sweep {plan.title}".lower())
    create_table_artifact([*scored, *failed], key=key, description=f"Sweep {plan.title}")


def raise_failures(points: Sequence[Point], states: Mapping[str, State]) -> None:
    """Raise FlowFailed if a point is not done, naming each with its reason."""
    failed = [f"{point.label}: {states[point.key].reason}" for point in points if states[point.key].phase != "done"]
    if failed:
        raise FlowFailed("; ".join(failed) + f" ({len(failed)} of {len(points)} points failed)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep from the command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a file of sweeps/, such as prune-depth")
    parser.add_argument("--profile", help="a file of profiles/, such as smoke")
    parser.add_argument("--where", choices=get_args(Where), default="local")
    parser.add_argument("--parallel", type=int, help="how many points at once (local)")
    parser.add_argument("--pool", metavar="NAME", help="which work pool (work-pool)")
    parser.add_argument("--gpus", type=lambda text: text.split(","), metavar="ID,...", help="which GPUs to use (local)")
    arguments = parser.parse_args(argv)

    def run() -> None:
        plan = read_sweep(Path.cwd(), arguments.name, arguments.profile)
        expand(Path.cwd(), plan)
        open_place(Path.cwd(), plan, arguments.where, arguments.parallel, arguments.gpus, arguments.pool)
        sweep(**vars(arguments))

    return in_terminal(run)


if __name__ == "__main__":
    sys.exit(main())

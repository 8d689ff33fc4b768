"""A sweep as one Prefect flow: `python -m flows.sweep prune-depth`, or a run of its deployment.

`sweeps/<name>.yaml` says which params differ. The stages that all points share are run once. Then each point is a run
of the pipeline in a folder of its own: on this machine, as a job of Slurm, or in a work pool of Prefect. A sweep that
is started again runs only the points that are missing or have failed, and follows points that still run. A point that
fails is reported and does not stop the others.
"""

import flows.entry.prefect_environment  # noqa: F401

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from prefect import Flow, flow, get_client, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run
from prefect.states import State as RunState

from flows.building.prefect_artifacts import best_effort
from flows.building.user_file_checks import refuse_wrong_paths
from flows.entry.terminal import LOGGER, FlowFailed, keep_server_from_interrupts, run_in_terminal
from flows.places.gpu_leases import visible_gpus
from flows.places.local_processes import LocalProcesses
from flows.places.slurm_jobs import SlurmJobs
from flows.places.sqlite_on_network import refuse_sqlite_over_network
from flows.places.work_pool import WorkPool
from flows.sweeps.follow_points import OnChange, follow, is_done, prepare_folders
from flows.sweeps.place_interface import Place, PointState
from flows.sweeps.points import Point, expand
from flows.sweeps.sweep_file import Sweep, read_sweep, sweep_run_tag
from flows.sweeps.sweep_mlflow_runs import open_sweep_run
from flows.sweeps.sweep_plot import draw
from flows.sweeps.sweep_table import Row, ScoredSetting, rows_of, settings_of, write_table
from tasks.evaluation.scorer_labels import SCORER_LABELS
from tasks.params.params_files import build_params
from tasks.stages import stages_of
from tasks.system.errors import UserError
from tasks.system.file_locks import exclusive_lock
from tasks.system.files import write_bytes
from tasks.system.paths import RESULTS, STATE
from tasks.system.readable_digits import COUNTS, scaled

Where = Literal["local", "slurm", "work-pool"]
Log = Callable[[str], None]


def cancel_jobs(flow: Flow, flow_run: FlowRun, state: RunState) -> None:
    """Cancel the sweep's runs on other hosts when Prefect cancels the flow.

    Prefect may kill the flow's process before the process can do that, and runs elsewhere would then live on.
    """
    parameters = flow_run.parameters
    plan = read_sweep(Path.cwd(), parameters["name"], parameters.get("profile"))
    if parameters.get("where") == "slurm":
        open_slurm(Path.cwd(), plan).cancel_all()
    if parameters.get("where") == "work-pool":
        open_pool(Path.cwd(), plan, parameters.get("pool")).cancel_all()


def name_of_run() -> str:
    """The name of the sweep's flow run in Prefect's UI: that of its file, and the profile if one is given."""
    given = flow_run.parameters
    return " ".join(filter(None, ("sweep", given["name"], given.get("profile"))))


@flow(
    name="sana15-sweep",
    flow_run_name=name_of_run,
    persist_result=True,
    result_serializer="json",
    on_cancellation=[cancel_jobs],
)
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
        parallel: for local only: how many points run at once. The default is the number of GPUs, or 1 without a GPU.
        gpus: for local only: the ids of the GPUs to use, in place of all visible ones.
        pool: for work-pool only: the pool's name, in place of the name in the sweep's file.

    Returns the folder of the results, and the number of points in each final state.
    """
    project = Path.cwd()
    plan = read_sweep(project, name, profile)
    points = expand(project, plan)
    refuse_wrong_paths_of(points, plan, where)
    place = open_place(project, plan, where, parallel, gpus, pool)
    log = get_run_logger().getChild(LOGGER).info
    with (
        exclusive_lock(project / STATE / "sweeps" / f"{plan.title}.lock", f"sweep {plan.title} is being run here"),
        open_sweep_run(plan, str(flow_run.id)) as mlflow_runs,
    ):
        with best_effort(log):
            get_client(sync_client=True).update_flow_run(flow_run.id, tags=[*flow_run.tags, sweep_run_tag(plan.title)])
        progress = ProgressReport(log, points)

        def on_change(point: Point, state: PointState) -> None:
            progress(point, state)
            mlflow_runs.note(point, state)

        states = run_points(project, points, place, on_change)
        rows = [row for point in points for row in rows_of(plan, point, states[point.key])]
        settings = settings_of(rows)
        folder = write_results(project, plan, rows, settings)
        mlflow_runs.finish(points, states, folder / "plot.png")
        with best_effort(log):
            publish(plan, rows, settings)
        log(f"table and plot are in {folder}")
        raise_failures(points, states)
    return {"results": str(folder), "points": dict(Counter(state.phase for state in states.values()))}


def refuse_wrong_paths_of(points: Sequence[Point], plan: Sweep, where: Where) -> None:
    """Raise UserError if a path that a point's stages read does not lead to what it should.

    Hosts that share no folder with this one have other files. There each point checks its paths itself.
    """
    if where == "work-pool" and plan.cluster.clone:
        return
    runs = []
    for point in points:
        params = build_params(dict(point.values), "params")
        every = stages_of(params)
        runs.append(([every[name] for name in (every if point.only is None else point.only)], params))
    refuse_wrong_paths(runs)


def open_place(
    project: Path, plan: Sweep, where: Where, parallel: int | None, gpus: Sequence[str] | None, pool: str | None
) -> Place:
    """The place where the points will run. Raises UserError if they cannot run there."""
    if pool is not None and where != "work-pool":
        raise UserError(f"pool is set, but where is {where}: leave pool out, or set where to work-pool")
    if where != "local":
        if parallel is not None or gpus is not None:
            raise UserError(f"parallel and gpus are set, but where is {where}, which decides itself: leave them out")
        refuse_sqlite_over_network(where)
        if where == "slurm":
            return open_slurm(project, plan)
        (workers := open_pool(project, plan, pool)).check()
        return workers
    if parallel is not None and parallel < 1:
        raise UserError(f"parallel is {parallel}: it must be above 0")
    seen = list(gpus) if gpus is not None else visible_gpus()
    return LocalProcesses(parallel or max(1, len(seen)), seen)


def open_slurm(project: Path, plan: Sweep) -> SlurmJobs:
    """Slurm as a place. Its jobs carry this sweep's tag."""
    return SlurmJobs(plan.cluster, sweep_tag(project, plan))


def open_pool(project: Path, plan: Sweep, pool: str | None) -> WorkPool:
    """The work pool as a place. Its flow runs carry this sweep's tag. Raises UserError if no pool is named."""
    if (pool := pool or plan.cluster.pool) is None:
        raise UserError(
            f"where is work-pool, but no pool is named: use --pool NAME, or cluster.pool in sweeps/{plan.name}.yaml"
        )
    return WorkPool(project, pool, plan.cluster, sweep_tag(project, plan))


def sweep_tag(project: Path, plan: Sweep) -> str:
    """The text by which runs of this sweep are told from other runs in Slurm's queue or in Prefect."""
    return f"sana15 sweep {plan.title} of {project}"


def run_points(project: Path, points: Sequence[Point], place: Place, on_change: OnChange) -> dict[str, PointState]:
    """Run the shared stages that missing points need, then the points. Returns each point's final state by its key."""
    shared = missing_shared_runs(points)
    prepare_folders(project, [*shared, *points], place)
    before = follow(project, shared, place, on_change)
    blocked = {
        point.key: PointState("failed", f"{point.shared.label}: {before[point.shared.key].reason}")
        for point in points
        if point.shared is not None and before.get(point.shared.key, PointState("done")).phase != "done"
    }
    for point in points:
        if point.key in blocked:
            on_change(point, blocked[point.key])
    return follow(project, [point for point in points if point.key not in blocked], place, on_change) | blocked


def missing_shared_runs(points: Sequence[Point]) -> list[Point]:
    """The points of shared stages that are not done and that some point still waits for."""
    waiting = (point.shared for point in points if point.shared is not None and not is_done(point))
    return list({shared.key: shared for shared in waiting if not is_done(shared)}.values())


class ProgressReport:
    """Logs every change of a point's state, and shows on Prefect's page how many runs are over."""

    def __init__(self, log: Log, points: Sequence[Point]) -> None:
        missing = sum(not is_done(point) for point in points)
        log(f"{len(points) - missing} of {len(points)} points are done, {missing} are to run")
        self._log, self._over, self._total = log, 0, len(missing_shared_runs(points)) + missing
        with best_effort(log):
            self._artifact = create_progress_artifact(0.0, key="sweep", description=f"0 of {self._total} runs")

    def __call__(self, point: Point, state: PointState) -> None:
        """Report one change."""
        self._log(f"{point.label} ({point.key}): {state.phase}" + (f": {state.reason}" if state.reason else ""))
        if state.phase in ("done", "failed"):
            self._over += 1
            with best_effort(self._log):
                done = f"{self._over} of {self._total} runs"
                update_progress_artifact(self._artifact, 100.0 * self._over / self._total, description=done)


def write_results(project: Path, plan: Sweep, rows: Sequence[Row], settings: Sequence[ScoredSetting]) -> Path:
    """Write `table.csv` and `plot.png`, and return their folder, `results/sweeps/<title>`."""
    folder = project / RESULTS / "sweeps" / plan.title
    write_table(folder / "table.csv", plan, rows, settings)
    write_bytes(folder / "plot.png", draw(plan.title, settings))
    return folder


def publish(plan: Sweep, rows: Sequence[Row], settings: Sequence[ScoredSetting]) -> None:
    """Publish the settings as a table on Prefect's page, with the failed points below them."""
    scored = [readable(one) for one in settings]
    failed = [{"setting": row.point, "reason": row.reason} for row in rows if row.state != "done"]
    key = re.sub("[^a-z0-9]+", "-", f"sweep {plan.title}".lower())
    create_table_artifact([*scored, *failed], key=key, description=f"Sweep {plan.title}")
    create_markdown_artifact(points_text(plan), key=f"{key}-points", description="The flow runs of its points")


def readable(one: ScoredSetting) -> dict[str, str]:
    """A row of the table for people, in few digits."""
    return {
        "setting": one.label,
        "model": one.model,
        "best of": str(one.pictures),
        "seeds": str(one.seeds),
        "parameters": scaled(one.parameters, COUNTS),
        "held-out loss": f"{one.heldout_loss:.3f}",
        f"{SCORER_LABELS[one.scorer]} [95 %]": f"{one.score:.3f} [{one.low:.3f}, {one.high:.3f}]",
        "seconds": "" if one.seconds is None else f"{one.seconds:.3g}",
        "": ", ".join(mark for mark, holds in (("best", one.best), ("Pareto set", one.pareto)) if holds),
    }


def points_text(plan: Sweep) -> str:
    """A list, in markdown, of the pipeline's flow runs that carry this sweep's tag, each with a link and its state.

    A point that was run by an earlier start of the sweep is among them.
    """
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[sweep_run_tag(plan.title)]))
    found = get_client(sync_client=True).read_flow_runs(flow_run_filter=tagged, sort=FlowRunSort.START_TIME_DESC)
    # brackets in a name would end the link's text
    names = [(run, re.sub(r"([\[\]])", r"\\\1", run.name)) for run in found if run.parameters.get("point")]
    return "\n".join(f"* [{name}](/runs/flow-run/{run.id}): {run.state_name}" for run, name in names)


def raise_failures(points: Sequence[Point], states: Mapping[str, PointState]) -> None:
    """Raise FlowFailed, with the label and reason of each point that is not done, if there is one."""
    failed = [f"{point.label}: {states[point.key].reason}" for point in points if states[point.key].phase != "done"]
    if failed:
        raise FlowFailed("; ".join(failed) + f" ({len(failed)} of {len(points)} points failed)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep from the command line and return its exit code."""
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
        # Bad input is found here already, before Prefect starts a server for the flow.
        plan = read_sweep(Path.cwd(), arguments.name, arguments.profile)
        refuse_wrong_paths_of(expand(Path.cwd(), plan), plan, arguments.where)
        open_place(Path.cwd(), plan, arguments.where, arguments.parallel, arguments.gpus, arguments.pool)
        keep_server_from_interrupts()
        sweep(**vars(arguments))

    return run_in_terminal(run)


if __name__ == "__main__":
    sys.exit(main())

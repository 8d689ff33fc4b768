"""The whole experiment as one Prefect flow: `python -m flows.full_pipeline`, or a run of its deployment.

Stages that DVC finds up to date are skipped and shown as Cached. Stages that are built are recorded in `dvc.lock`. If a
stage fails, branches that do not depend on it go on, and at the end the flow fails with every reason. With a profile or
overrides, the flow works in a copy of the project under `runs/`. With `until` it stops at a stage.
"""

import flows.entry.prefect_environment  # noqa: F401

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.states import State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.building.announced_time import announced_time
from flows.building.child_processes import ChildFailed
from flows.building.dvc_yaml_text import refuse_stale_file
from flows.building.model_table import print_models
from flows.building.next_steps import next_steps
from flows.building.prefect_artifacts import StageProgress, best_effort, publish_models, publish_report, publish_stages
from flows.building.stage_builder import BuiltStage, StageBuilder, open_builder
from flows.building.stage_graph import stages_until, submit_stages
from flows.building.stage_retry import stage_task
from flows.building.user_file_checks import refuse_wrong_paths
from flows.building.workspace import merged_params, open_workspace, run_name, workspace_folder
from flows.entry.terminal import LOGGER, FlowFailed, keep_server_from_interrupts, run_in_terminal
from tasks.params.params_files import PARAMS_FILE, build_params
from tasks.params.yaml_text import parse_yaml
from tasks.stages import stages_of
from tasks.system.error_lines import line_of
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.system.paths import RESULTS


def name_of_run() -> str:
    """The name of the flow run in Prefect's UI; MLflow's parent run has the same."""
    return run_name(flow_run.parameters)


@flow(
    name="sana15",
    flow_run_name=name_of_run,
    task_runner=ThreadPoolTaskRunner(),
    persist_result=True,
    result_serializer="json",
)
def full_pipeline(
    profile: str | None = None,
    overrides: dict[str, Any] | None = None,
    only: list[str] | None = None,
    remote: bool = False,
    until: str | None = None,
    point: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Build everything from pictures to a family of scored models; see the module's docstring.

    Args:
        profile: a file of `profiles/` merged over `params.yaml`.
        overrides: values by dotted key, such as `{"finetune.steps": 50}`, merged over the result.
        only: the stages to run, such as `["shard"]`, in place of all. Stages that they read from must be among them or
            built before.
        point: what point of a sweep this run is; `flows.sweeps.point_program` sets it.
        remote: take outputs that `dvc.lock` names from DVC's default remote, and push all outputs there at the end.
        until: the stage to stop at, such as `finetune@6`, or `finetune` for all of its items. It is run with all stages
            that it reads from.

    Returns the workspace and, for each stage, its outputs with their digests, whether it was cached, and its seconds.
    """
    flow_parameters = {"profile": profile, "overrides": overrides or {}, "point": point}
    refuse_stale_file()
    stages_to_run = checked_stages(profile, flow_parameters["overrides"], only, until)
    root = open_workspace(Path.cwd(), profile, flow_parameters["overrides"])
    log = get_run_logger().getChild(LOGGER).info
    log(f"working in {root}")
    with open_builder(root, str(flow_run.id), flow_parameters, remote) as builder:
        progress = StageProgress(len(stages_to_run))

        def submit(name: str, upstream: Sequence[PrefectFuture]) -> PrefectFuture:
            return stage_task(builder, name, progress, stages_to_run).submit(wait_for=upstream)

        futures = submit_stages(submit, builder.params, stages_to_run)
        wait(list(futures.values()))
        stages = [BuiltStage(**f.result()) for f in futures.values() if f.state.is_completed()]
        with best_effort(log):
            publish_stages(stages)
        if unpushed := push(builder, stages) if remote else "":
            log(unpushed)
        raise_failures({name: future.state for name, future in futures.items()})
        if unpushed:
            raise FlowFailed(unpushed)
        if "report" in futures:
            record_results(builder, root.resolve() / RESULTS, log)
    if until is not None and "report" not in futures:
        for line in next_steps(root, stages_to_run, builder.params, profile, flow_parameters["overrides"]):
            log(line)
    return {"workspace": str(root), "stages": [asdict(stage) for stage in stages]}


def checked_stages(
    profile: str | None, overrides: Mapping[str, Any], only: Collection[str] | None, until: str | None
) -> tuple[str, ...]:
    """The stages that a run has to bring up to date: `only` these, or those up to `until`, or all of them.

    Raises UserError if `until` names no stage, if it comes beside `only`, or if a path that these stages read does not
    lead to what it should.
    """
    params = build_params(merged_params(Path.cwd(), profile, overrides), str(PARAMS_FILE))
    if only is not None and until is not None:
        raise UserError(f"only is {list(only)} and until is {until}: set one of them")
    every = stages_of(params)
    names = tuple(every if only is None else only)
    if until is not None:
        names = stages_until([until], params, "until")
    refuse_wrong_paths([([every[name] for name in names if name in every], params)])
    return names


def record_results(builder: StageBuilder, results: Path, log: Callable[[str], None]) -> None:
    """Record the models and the report of a finished run in MLflow, and show them in Prefect's UI."""
    summary, report = read_json(results / "summary.json"), results / "report.html"
    builder.mlflow_runs.record_models(summary["models"])
    builder.mlflow_runs.describe_models(summary)
    builder.mlflow_runs.record_report(report, results / "family.png")
    with best_effort(log):
        publish_models(summary)
        publish_report(report, builder.mlflow_runs.address(report.name))


def print_results(workspace: Path, stages: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of models and the path of the report, if the report is among the stages of this run."""
    if any(stage["stage"] == "report" for stage in stages):
        results = workspace.resolve() / RESULTS
        print_models(read_json(results / "summary.json"), str(results / "report.html"))


def push(builder: StageBuilder, stages: Sequence[BuiltStage]) -> str:
    """Push the outputs of these stages. Returns why that failed, or an empty text.

    Stages that were cached are pushed too, since the push of an earlier run may have failed.
    """
    try:
        if stages:
            builder.push([stage.stage for stage in stages])
    except ChildFailed as error:
        return f"not all that is built was pushed to DVC's remote: {error}"
    return ""


def raise_failures(states: Mapping[str, State]) -> None:
    """Raise FlowFailed, with the name and reason of each failed stage, if a stage has failed."""
    failed = [f"{name}: {_reason(state)}" for name, state in states.items() if state.is_failed() or state.is_crashed()]
    if failed:
        behind = sum(state.is_pending() for state in states.values())
        raise FlowFailed("; ".join(failed) + (f" ({behind} stages behind did not run)" if behind else ""))


def _reason(state: State) -> str:
    error = state.result(raise_on_failure=False)
    known = line_of(error) if isinstance(error, BaseException) else None
    return known or " ".join(str(error).split()) or type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the flow from the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.full_pipeline", description=__doc__)
    parser.add_argument("--profile", help="a file of profiles/, such as smoke")
    parser.add_argument(
        "-p", "--param", action="append", default=[], metavar="KEY=VALUE", help="override, such as finetune.steps=50"
    )
    parser.add_argument(
        "--until",
        metavar="STAGE",
        help="stop at this stage, such as finetune@6, or finetune for all of its items; no report is made",
    )
    parser.add_argument("--remote", action="store_true", help="pull from DVC's remote what it has, push all at the end")
    arguments = parser.parse_args(argv)

    def run() -> None:
        overrides = dict(parse_override(text) for text in arguments.param)
        # Bad params and wrong paths are found here already, before Prefect starts a server for the flow.
        stages = checked_stages(arguments.profile, overrides, None, arguments.until)
        params = merged_params(Path.cwd(), arguments.profile, overrides)
        keep_server_from_interrupts()
        with announced_time(params, workspace_folder(Path.cwd(), arguments.profile, overrides), stages):
            done = full_pipeline(
                profile=arguments.profile, overrides=overrides, remote=arguments.remote, until=arguments.until
            )
        print_results(Path(done["workspace"]), done["stages"])

    return run_in_terminal(run)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `finetune.steps=50` into a key and a YAML value. Raises UserError without a `=` or YAML behind it."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"-p {text}: write it as section.key=value")
    return key, parse_yaml(value, f"-p {text}")


if __name__ == "__main__":
    sys.exit(main())

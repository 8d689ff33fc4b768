"""The Prefect task of one stage, which Prefect retries if the stage fails."""

import flows.entry.prefect_environment  # noqa: F401

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from prefect import get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed, State
from prefect.tasks import Task

from flows.building.child_processes import ChildFailed
from flows.building.prefect_artifacts import StageProgress, best_effort
from flows.building.shard_checks import refuse_unfit_shards
from flows.building.stage_builder import StageBuilder
from flows.entry.terminal import LOGGER
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT


def stage_task(
    builder: StageBuilder, name: str, progress: StageProgress, stages: Collection[str]
) -> Task[[], dict[str, Any]]:
    """The Prefect task that builds stage `name`, one of the `stages` of the flow run.

    The stage `shard` also fails if a later one of the `stages` could not work with its pictures.
    Prefect runs a failed stage again, up to `workflow.retries` times. It does not if the stage's input was bad, which
    another attempt would not change, or if the flow was stopped.
    """

    def run() -> dict[str, Any] | State:
        log = get_run_logger().getChild(LOGGER)
        try:
            # a stage begins its lines with its own name, for a person who runs it alone
            built = builder.build(name, lambda line: log.info("%s | %s", name, line.removeprefix(f"{name}: ")))
            if name == "shard":
                refuse_unfit_shards(stages, builder.params)
        except (ChildFailed, UserError) as error:
            log.error("%s failed: %s", name, error)
            raise
        with best_effort(log.warning):
            progress.advance()
        if built.cached:
            log.info("%s: cached", name)
            return Completed(name="Cached", message="up to date", data=asdict(built))
        log.info("%s: done in %.1f s", name, built.seconds)
        return asdict(built)

    def worth_retrying(_task: Task, _run: TaskRun, state: State) -> bool:
        error = state.data
        return isinstance(error, ChildFailed) and error.code != BAD_INPUT and not builder.child_processes.stopping

    return Task(
        fn=run,
        name=name,
        task_run_name=name,
        retries=builder.params.workflow.retries,
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,  # DVC decides whether a stage is up to date
        persist_result=True,
        result_serializer="json",
    )

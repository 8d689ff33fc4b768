"""The order of stages: which of them the flow submits, and for which others each waits. `tasks.stages` defines it."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from tasks.params.experiment_params import Params
from tasks.stages import edges, stages_of

Future = TypeVar("Future")


def submit_stages(
    submit: Callable[[str, Sequence[Future]], Future], params: Params, only: Collection[str] | None = None
) -> dict[str, Future]:
    """Submit every stage of an experiment, or the stages `only`, and return their futures by name, upstream first.

    `submit` gets the name of a stage and the futures of the submitted stages whose outputs it reads.
    """
    futures: dict[str, Future] = {}
    for name, upstream in edges(stages_of(params).values()).items():
        if only is None or name in only:
            futures[name] = submit(name, [futures[other] for other in upstream if other in futures])
    return futures


def upstream_of(params: Params) -> dict[str, set[str]]:
    """For each stage, the names of all stages that it reads from, directly or through others. Upstream stages first."""
    all_upstream: dict[str, set[str]] = {}
    for name, upstream in edges(stages_of(params).values()).items():
        all_upstream[name] = set(upstream).union(*(all_upstream[other] for other in upstream))
    return all_upstream

"""The order of stages: which of them the flow submits, and what each waits for. It follows from `tasks.stages`."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from tasks.params.experiment import Params
from tasks.stages import edges, stages_of

Future = TypeVar("Future")


def submit_stages(
    submit: Callable[[str, Sequence[Future]], Future], params: Params, only: Collection[str] | None = None
) -> dict[str, Future]:
    """Submit every stage of an experiment by its name, after the futures of the stages whose outputs it reads.

    With `only`, those stages and no others. Returns the futures by stage name, upstream first.
    """
    futures: dict[str, Future] = {}
    for name, upstream in edges(stages_of(params).values()).items():
        if only is None or name in only:
            futures[name] = submit(name, [futures[one] for one in upstream if one in futures])
    return futures


def upstream_of(params: Params) -> dict[str, set[str]]:
    """The names of all stages that each stage reads from, directly or through others; upstream first."""
    above: dict[str, set[str]] = {}
    for name, upstream in edges(stages_of(params).values()).items():
        above[name] = set(upstream).union(*(above[one] for one in upstream))
    return above

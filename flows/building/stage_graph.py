"""The order of stages: which of them the flow submits, and for which others each waits. `tasks.stages` defines it."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from tasks.params.experiment_params import Params
from tasks.stages import EVALUATE, LATENCY, edges, stages_of
from tasks.system.errors import UserError

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


def stages_until(until: Collection[str], params: Params, where: str) -> tuple[str, ...]:
    """The stages `until` and all stages that they read from, upstream first.

    A name may be a stem, such as `finetune`, which stands for every item of that stage. Raises UserError if a name is
    neither a stage nor a stem; `where` says in the message who named it.
    """
    upstream = upstream_of(params)
    for name in until:
        if not any(name in (stage, stem_of(stage)) for stage in upstream):
            known = [
                *dict.fromkeys(stem_of(stage) for stage in upstream),
                *(stage for stage in upstream if "@" in stage),
            ]
            raise UserError(f"{where} names {name!r}: it must be one of {', '.join(known)}")
    last = {stage for stage in upstream if not {stage, stem_of(stage)}.isdisjoint(until)}
    if EVALUATE.stem in map(stem_of, last):  # seconds are shown beside scores
        last.add(LATENCY.stem)
    return tuple(stage for stage in upstream if stage in last or any(stage in upstream[one] for one in last))


def stem_of(stage: str) -> str:
    """The stem of a stage's name: `prune` for `prune@6`."""
    return stage.partition("@")[0]

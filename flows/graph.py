"""The stage graph: what waits for what. `dvc.yaml` spells the same edges for DVC; a test compares the two."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from tasks.params import Params

Future = TypeVar("Future")


def submit_stages(
    submit: Callable[[str, Sequence[Future]], Future], params: Params, only: Collection[str] | None = None
) -> dict[str, Future]:
    """Submit every stage of an experiment by its name, after the futures of the stages whose outputs it reads.

    With `only`, those stages and no others. Returns the futures by stage name, upstream first.
    """
    futures: dict[str, Future] = {}

    def stage(name: str, *upstream: Future | None) -> Future | None:
        if only is None or name in only:
            futures[name] = submit(name, [future for future in upstream if future is not None])
        return futures.get(name)

    shards = stage("shard")
    autoencoder = stage("autoencoder", shards)
    text_encoder = stage("text_encoder", shards)
    encoded = stage("encode", shards, autoencoder, text_encoder)
    small = stage("pretrain", encoded)
    judge = stage("judge", shards, small, autoencoder, text_encoder)

    def score(name: str, model: Future | None) -> None:
        stage(f"geneval@{name}", model, autoencoder, text_encoder, judge)

    grown_init = stage("grow", small, encoded)
    grown = stage("train", grown_init, encoded)
    baselines = {"small": small, "grown": grown}
    for name in params.workflow.baselines:
        score(name, baselines[name])
    stage("controls", grown, autoencoder, text_encoder)
    importance = stage("importance", grown, encoded)
    for depth in params.prune.depths:
        pruned = stage(f"prune@{depth}", grown, importance, encoded)
        finetuned = stage(f"finetune@{depth}", pruned, encoded)
        score(f"pruned-{depth}", pruned)
        score(f"finetuned-{depth}", finetuned)
    stage("report", *futures.values())
    return futures


def upstream_of(params: Params) -> dict[str, set[str]]:
    """The names of all stages that each stage reads from, directly or through others; upstream first."""
    above: dict[str, set[str]] = {}

    def submit(name: str, upstream: Sequence[str]) -> str:
        above[name] = set(upstream).union(*(above[one] for one in upstream))
        return name

    submit_stages(submit, params)
    return above

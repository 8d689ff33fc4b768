"""The stage graph: what waits for what. `dvc.yaml` spells the same edges for DVC; a test compares the two."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tasks.params import Params

Future = TypeVar("Future")


def submit_stages(submit: Callable[[str, Sequence[Future]], Future], params: Params) -> dict[str, Future]:
    """Submit every stage of an experiment by its name, after the futures of the stages whose outputs it reads.

    Returns the futures by stage name, upstream first.
    """
    futures: dict[str, Future] = {}

    def stage(name: str, *upstream: Future) -> Future:
        futures[name] = submit(name, upstream)
        return futures[name]

    shards = stage("shard")
    autoencoder = stage("autoencoder", shards)
    text_encoder = stage("text_encoder", shards)
    encoded = stage("encode", shards, autoencoder, text_encoder)
    small = stage("pretrain", encoded)
    judge = stage("judge", shards, small, autoencoder, text_encoder)

    def score(name: str, model: Future) -> None:
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

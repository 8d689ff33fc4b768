"""The stage graph: what waits for what. `dvc.yaml` spells the same edges for DVC; a test compares the two."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Future = TypeVar("Future")


def submit_stages(submit: Callable[[str, Sequence[Future]], Future], depths: Sequence[int]) -> dict[str, Future]:
    """Submit every stage by its name, after the futures of the stages whose outputs it reads.

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
    judge = stage("judge", small, autoencoder, text_encoder, shards)

    def score(name: str, model: Future) -> Future:
        return stage(name, model, judge, autoencoder, text_encoder, shards)

    score("geneval@small", small)
    grown_init = stage("grow", small, encoded)
    grown = stage("train", grown_init, encoded)
    score("geneval@grown", grown)
    importance = stage("importance", grown, encoded)
    stage("controls", grown, importance, autoencoder, text_encoder, encoded)
    for depth in depths:
        pruned = stage(f"prune@{depth}", grown, importance, encoded)
        score(f"geneval@pruned-{depth}", pruned)
        finetuned = stage(f"finetune@{depth}", pruned, encoded)
        score(f"geneval@finetuned-{depth}", finetuned)
    stage("report", *futures.values())
    return futures

"""Checks, right behind the stage `shard`, that its pictures suit the stages that come much later."""

from collections.abc import Collection

from tasks.data.shards import ShardReader
from tasks.params.experiment_params import Params
from tasks.system import paths
from tasks.system.errors import UserError


def refuse_unfit_shards(stages: Collection[str], params: Params) -> None:
    """Raise UserError if a stage among `stages` could not work with the shards in the working directory.

    A trained judge learns from square pictures of the shards. With aspect buckets there may be none.
    """
    side, judge = params.shard.image_size, params.judge
    if "judge" not in stages or judge.kind != "trained" or not judge.shard_pictures:
        return
    sizes = ShardReader(paths.SHARDS, "train").sizes
    if sizes is not None and not (sizes == (side, side)).all(axis=1).any():
        raise UserError(
            f"{paths.SHARDS} has no training pictures of {side}x{side}, of which the judge wants up to "
            f"{judge.shard_pictures}: set judge.shard_pictures to 0 in params.yaml, or shard.aspect_buckets to false"
        )

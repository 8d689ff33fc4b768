"""Checks, right behind the stage `shard`, that its captions suit the stages that come much later."""

from collections.abc import Collection

from tasks.data.shards import ShardReader
from tasks.params.experiment_params import Params
from tasks.system import paths
from tasks.system.errors import UserError

LEAST_CAPTIONS = {"train": 4, "heldout": 2}
"""The scorer matching and the judge learn from different captions, at least 2 each, and choose among held-out ones."""


def refuse_unfit_shards(stages: Collection[str], params: Params) -> None:
    """Raise UserError if a stage among `stages` could not work with the shards in the working directory.

    The scorer matching tells captions apart, so there must be some that differ.
    """
    if "scorer" not in stages or params.scorer != "matching":
        return
    for split, least in LEAST_CAPTIONS.items():
        found = different_captions(split, least)
        if found < least:
            raise UserError(
                f"{paths.SHARDS} has {found} different captions in the split {split}: evaluation.scorer matching needs "
                f"at least {least}; caption the pictures differently, or run with --until finetune, which scores none"
            )


def different_captions(split: str, enough: int) -> int:
    """The number of different captions of a split; counting ends at `enough`."""
    reader, found = ShardReader(paths.SHARDS, split), set()
    for index in range(len(reader)):
        found.add(reader.record(index)["prompt"])
        if len(found) == enough:
            break
    return len(found)

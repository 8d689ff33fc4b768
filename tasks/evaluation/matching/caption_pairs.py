"""Pictures with their captions, to learn from: which belongs to which. Each half of them has captions of its own.

The scorer learns from one half and the judge from the other, so the judge cannot learn the scorer's mistakes.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_dataset import PictureDataset
from tasks.system.errors import UserError

Half = Literal["scorer", "judge"]


@dataclass(frozen=True)
class Pairs:
    """Q pictures (Q, H, W, 3) and their captions."""

    pictures_QHW3: NDArray[np.uint8]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def _pairs_of_word(self) -> dict[str, list[int]]:
        """For each word the pairs whose captions have it, once for each caption."""
        found: dict[str, list[int]] = defaultdict(list)
        for place in dict(zip(reversed(self.captions), range(len(self) - 1, -1, -1), strict=True)).values():
            for word in set(self.captions[place].lower().split()):
                found[word].append(place)
        return found

    def other_captions(self, rows: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
        """For each row a caption of another pair that shares a random word with it, or any caption if none does.

        A caption that differs in few words is the hardest to tell from the right one.
        """
        chosen = []
        for row in rows:
            words = sorted(set(self.captions[row].lower().split()))
            places = self._pairs_of_word[words[rng.integers(len(words))]] if words else []
            place = places[rng.integers(len(places))] if len(places) > 1 else rng.integers(len(self))
            chosen.append(self.captions[int(place)])
        return chosen


def read_pairs(shards: Path, half: Half, limit: int, side: int, seed: int) -> Pairs:
    """Up to `limit` training pairs of a half, drawn at random, with pictures of (side, side).

    Raises UserError if the half has fewer than 2 different captions.
    """
    captions = read_captions(shards, half, limit, seed)
    pictures = PictureDataset(shards, "train").squares(list(captions), side)
    return Pairs(pictures, list(captions.values()))


def read_captions(shards: Path, half: Half, limit: int, seed: int) -> dict[int, str]:
    """The captions of up to `limit` training samples of a half by the samples' numbers, which ascend.

    They are among 4 `limit` samples, drawn at random. Raises UserError if the half has fewer than 2 different captions.
    """
    dataset = PictureDataset(shards, "train")
    drawn = numpy_generator(seed, "matching pairs").permutation(len(dataset))[: 4 * limit]
    captions = {int(index): dataset.caption(int(index)) for index in np.sort(drawn)}
    own = {index: caption for index, caption in captions.items() if half_of(caption, seed) == half}
    if len(set(own.values())) < 2:
        raise UserError(
            f"{shards} has {len(set(captions.values()))} different captions, too few to divide: evaluation.scorer "
            "matching needs at least 2 in each half; give it more captioned pictures"
        )
    return dict([*own.items()][:limit])


def half_of(caption: str, seed: int) -> Half:
    """The half that a caption belongs to, whatever other captions there are."""
    return ("scorer", "judge")[derive(seed, "matching halves", caption) % 2]

"""Which of the user's own pictures are used, in which order, and how many of them are held out.

Pictures are taken in the order of the hashes of their keys, and the first ones are held out. So the split depends on
the keys alone. When pictures are added, the others stay on their side of the split, but for those that move because
the held-out set grows.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tasks.data.aspect_buckets import Bucket
from tasks.data.picture_files import load_picture
from tasks.data.rejected_pictures import Rejects
from tasks.data.sources.picture_candidate import Candidate, LeftOut, Reject


def by_hash(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates in order of the sha256 of their keys."""
    return sorted(candidates, key=_hash)


def _hash(candidate: Candidate) -> bytes:
    # A file's name may hold bytes that are not UTF-8.
    return hashlib.sha256(candidate.key.encode(errors="surrogateescape")).digest()


LEAST_HELDOUT = 100
"""Block importance is measured on so many held-out samples (SANA-1.5 section 2.4), so a small set holds out as many."""


def heldout_count(pictures: int, limit: int) -> int:
    """How many of `pictures` to hold out: a tenth or LEAST_HELDOUT, whichever is more.

    It is at most half of them and at most `limit`, and at least one, since a run needs a held-out loss.
    """
    return min(limit, max(pictures // 10, LEAST_HELDOUT), max(pictures // 2, 1))


def usable(
    candidates: Iterable[Candidate],
    image_size: int,
    max_pixels: int,
    rejects: Rejects,
    buckets: Sequence[Bucket] = (),
) -> Iterator[tuple[Candidate, np.ndarray, str]]:
    """Each usable candidate with its picture and its caption. `rejects` notes the others, and counts those left out.

    Pictures are uint8 (image_size, image_size, 3), or, if `buckets` are given, (height, width, 3) of a bucket.
    """
    for candidate in candidates:
        try:
            data, caption = candidate.read()
            picture = load_picture(data, image_size, max_pixels, buckets)
        except Reject as reject:
            rejects.add(candidate.where, str(reject))
        except LeftOut:
            rejects.left_out += 1
        else:
            yield candidate, picture, caption

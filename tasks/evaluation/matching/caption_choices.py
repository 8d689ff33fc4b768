"""The prompts of the scorer `matching`: a caption, and the other captions among which it must be found.

A line is GenEval's line without needs, and with the other captions: {"tag": "matching", "include": [], "prompt",
"others"}. So a line says all that its verdict depends on.
"""

from collections.abc import Collection, Sequence

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import Line
from tasks.evaluation.prompts.evaluation_prompts import MATCHING, Prompt
from tasks.system.errors import UserError


def caption_prompts(
    captions: Sequence[str], pool: Sequence[str], choices: int, seed: int, seen: Collection[str] | None = None
) -> list[Prompt]:
    """A prompt for each of the different `captions`, with `choices` - 1 others drawn from the captions of `pool`.

    Fewer others are drawn where the pool has fewer. `seen` are the captions of training pictures: a prompt is seen if
    its words are one of them. Raises UserError if the pool has no other caption.
    """
    different = list(dict.fromkeys(pool))
    return [
        Prompt(_line(caption, different, choices, seed), None if seen is None else caption in seen)
        for caption in dict.fromkeys(captions)
    ]


def _line(caption: str, pool: Sequence[str], choices: int, seed: int) -> Line:
    """A caption's line. Its other captions depend on the seed, the caption and the pool alone."""
    free = [other for other in pool if other != caption]
    if not free:
        raise UserError(
            f"the held-out pictures have no other caption than {caption!r}: evaluation.scorer matching needs captions "
            "that differ; give it more of them, or raise shard.heldout_samples"
        )
    chosen = numpy_generator(seed, "other captions", caption).permutation(len(free))[: choices - 1]
    return {"tag": MATCHING, "include": [], "prompt": caption, "others": [free[place] for place in np.sort(chosen)]}

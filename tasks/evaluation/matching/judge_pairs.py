"""What the judge learns from, and is asked, with the scorer matching."""

from collections.abc import Sequence

import numpy as np

from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_dataset import PictureDataset
from tasks.evaluation.matching.caption_choices import caption_prompts
from tasks.evaluation.matching.caption_pairs import Half, Pairs, read_captions, read_pairs
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.evaluation.prompts.judge_prompts import UNSEEN_SHARE, JudgePrompts
from tasks.params.experiment_params import Params
from tasks.system import paths


def prompts_of_captions(params: Params, evaluation: Sequence[Prompt]) -> JudgePrompts:
    """The judge's prompts: training captions of its half, held-out captions, and training captions of the other half.

    It is measured on held-out captions that the evaluation does not use, or, if that uses all, on the evaluation's with
    other noise. The threshold of adaptive best of N is set on captions that the judge was not trained on.
    """
    seed, chosen, choices = params.compute.seed, params.judge, params.matching.choices
    own, other = (_captions_of(params, half) for half in ("judge", "scorer"))
    heldout = list(dict.fromkeys(PictureDataset(paths.SHARDS, "heldout").captions))
    taken = {prompt.text for prompt in evaluation}
    free = [caption for caption in heldout if caption not in taken] or [prompt.text for prompt in evaluation]
    order = numpy_generator(seed, "unseen captions").permutation(len(free))
    unseen = [free[place] for place in order[: max(len(own[: chosen.prompts]) // UNSEEN_SHARE, 1)]]
    return JudgePrompts(
        caption_prompts(own[: chosen.prompts], own, choices, seed),
        caption_prompts(unseen, heldout, choices, seed),
        caption_prompts(other[: chosen.calibration_prompts], other, choices, seed),
    )


def _captions_of(params: Params, half: Half) -> list[str]:
    """The different captions of a half, in a random order, as many as the judge may need."""
    limit = max(params.judge.prompts, params.judge.calibration_prompts)
    captions = list(dict.fromkeys(read_captions(paths.SHARDS, half, limit, params.compute.seed).values()))
    return [captions[place] for place in numpy_generator(params.compute.seed, half).permutation(len(captions))]


def own_pairs(painter: Painter, prompts: Sequence[Prompt]) -> Pairs:
    """Training pictures of the judge's half with their captions, and pictures that were drawn for the prompts.

    A drawn picture counts as one of its prompt's caption, though it may show it badly: over many pictures it fits that
    caption better than others. So the judge learns what drawn pictures look like.
    """
    params, seed = painter.params, painter.params.compute.seed
    texts, images = [prompt.text for prompt in prompts], params.judge.images_per_prompt
    drawn_PNHW3 = painter.draw(texts, images, derive(seed, "judge"), "judge pictures")
    drawn = drawn_PNHW3.reshape(-1, *drawn_PNHW3.shape[2:])
    captions = [text for text in texts for _ in range(images)]
    if not params.judge.shard_pictures:
        return Pairs(drawn, captions)
    real = read_pairs(paths.SHARDS, "judge", params.judge.shard_pictures, drawn.shape[1], seed)
    return Pairs(np.concatenate([real.pictures_QHW3, drawn]), [*real.captions, *captions])

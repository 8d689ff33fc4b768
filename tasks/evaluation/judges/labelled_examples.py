"""The pictures that the judge learns from with the scorer geneval, which labels them."""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_dataset import PictureDataset
from tasks.evaluation.judges.judge_training import LabelledPictures
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.evaluation.scorers.geneval_scorer import GenEvalScorer
from tasks.system import paths


def labelled_examples(painter: Painter, prompts: Sequence[Prompt], scorer: GenEvalScorer) -> LabelledPictures:
    """The judge's training pictures: pictures drawn for the prompts, their mirror images, and pictures of the shards.

    A mirror image keeps its prompt, which may now be wrong ("left of"); it is labelled anew. Each picture of the shards
    gets one of the prompts as its own.
    """
    params, seed = painter.params.judge, painter.params.compute.seed
    lines = [prompt.line for prompt in prompts]
    images = params.images_per_prompt
    drawn = draw_and_label(painter, prompts, images, derive(seed, "judge"), "judge pictures", scorer)
    mirrored = np.ascontiguousarray(drawn.pictures_QHW3[:, :, ::-1])
    parts = [drawn, LabelledPictures(mirrored, drawn.own_Q, scorer.label(mirrored, lines))]
    if params.shard_pictures:
        shown = shard_pictures(params.shard_pictures, painter.params.shard.image_size, seed)
        yes_QL = scorer.label(shown, lines)
        own_Q = choose_prompts(yes_QL, numpy_generator(seed, "judge shard prompts"))
        parts.append(LabelledPictures(shown, own_Q, yes_QL))
    return LabelledPictures(*(np.concatenate(arrays) for arrays in zip(*map(astuple, parts), strict=True)))


def shard_pictures(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Up to `count` training pictures (Q, side, side, 3). With aspect buckets, they are cropped to the square."""
    dataset = PictureDataset(paths.SHARDS, "train")
    order = numpy_generator(seed, "judge shard pictures").permutation(len(dataset))
    return dataset.squares(np.sort(order[:count]), side)


def choose_prompts(yes_QL: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """The index (Q,) of a prompt for each picture.

    Every second picture gets a prompt to which the scorer says yes, if there is one. All others get a random prompt.
    """
    chosen = rng.integers(yes_QL.shape[1], size=len(yes_QL))
    for row in range(0, len(yes_QL), 2):
        if yes_QL[row].any():
            chosen[row] = rng.choice(np.flatnonzero(yes_QL[row]))
    return chosen


def draw_and_label(
    painter: Painter, prompts: Sequence[Prompt], images_per_prompt: int, seed: int, name: str, scorer: GenEvalScorer
) -> LabelledPictures:
    """Draw pictures of the prompts; the scorer labels each picture for all prompts."""
    pictures_PNHW3 = painter.draw([prompt.text for prompt in prompts], images_per_prompt, seed, name)
    pictures = pictures_PNHW3.reshape(-1, *pictures_PNHW3.shape[2:])
    own = np.repeat(np.arange(len(prompts)), images_per_prompt)
    return LabelledPictures(pictures, own, scorer.label(pictures, [prompt.line for prompt in prompts]))

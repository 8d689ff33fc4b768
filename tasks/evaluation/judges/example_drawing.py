"""Draws the pictures from which a vision-language judge is fine-tuned, and has them labelled (see `example_shards`).

Shapes: Q pictures, P prompts, N pictures of each prompt.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tasks.computing.seeds import derive, numpy_generator
from tasks.data.picture_files import encode_png
from tasks.data.shards import SPLITS, Sample, describe, write_index, write_split
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.judges.example_shards import LABELS
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt, write_prompts
from tasks.evaluation.prompts.judge_prompts import ExamplePrompts
from tasks.evaluation.scorers.scorer_interface import Scorer
from tasks.system.errors import UserError

PICTURES_AT_ONCE = 512
"""About so many pictures are drawn, labelled and written before the next are drawn, so that memory holds no more."""


def write_examples(
    folder: Path, painter: Painter, scorer: Scorer, prompts: ExamplePrompts, images_per_prompt: int, seed: int
) -> dict[str, NDArray[np.bool_]]:
    """Draw and label `images_per_prompt` pictures of each prompt; returns the verdicts (P, N) of each split.

    Pictures of a split are drawn from noise of their own. Raises UserError if the model draws no picture right or none
    wrong for the prompts to learn from: such examples teach nothing.
    """
    arrays: dict[str, NDArray[np.uint8] | NDArray[np.int64]] = {}
    verdicts, entries = {}, {}
    for split in SPLITS:
        asked: list[Prompt] = getattr(prompts, split)
        found: list[NDArray[np.bool_]] = []
        samples = _samples(painter, scorer, asked, images_per_prompt, derive(seed, "judge examples", split), found)
        entries[split] = write_split(folder, split, samples, painter.params.shard.samples_per_shard)
        yes_PN = verdicts[split] = np.concatenate(found)
        tasks = [prompt.tag for prompt in asked]
        arrays[f"{split}/yes"] = yes_PN.astype(np.uint8)
        arrays[f"{split}/balanced"] = balanced_choice(yes_PN, tasks, numpy_generator(seed, "balanced examples", split))
        write_prompts(folder / f"{split}.json", asked)
    write_index(folder, entries)
    save_file(arrays, folder / LABELS)
    if not len(arrays["train/balanced"]):
        share = verdicts["train"].mean()
        raise UserError(
            f"the scorer says yes to {share:.0%} of the {verdicts['train'].size} pictures, and no task has right and "
            "wrong ones: raise judge_finetune.images_per_prompt, or train the model that draws them longer"
        )
    return verdicts


def balanced_choice(yes_PN: NDArray[np.bool_], tasks: Sequence[str], rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices, ascending, of as many right as wrong pictures of each task; of the more frequent kind some are drawn.

    The balance is one of each task, so that the kind of a prompt does not tell its answer. A task whose pictures are
    all right or all wrong has no place in the choice.
    """
    chosen: list[NDArray[np.int64]] = []
    images = yes_PN.shape[1]
    for task in dict.fromkeys(tasks):
        of_task = np.array([one == task for one in tasks]).repeat(images)
        sides = [np.flatnonzero(of_task & (yes_PN.ravel() == side)) for side in (True, False)]
        count = min(map(len, sides))
        chosen += [rng.choice(side, count, replace=False) for side in sides]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _samples(
    painter: Painter,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    seed: int,
    verdicts: list[NDArray[np.bool_]],
) -> Iterator[Sample]:
    """The samples of a split, in order. The verdicts (P', N) of each part of the prompts are added to `verdicts`."""
    at_once = max(PICTURES_AT_ONCE // images_per_prompt, 1)
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        label = f"examples {start + 1} to {start + len(part)} of {len(prompts)} prompts"
        pictures_PNHW3 = painter.draw([one.text for one in part], images_per_prompt, derive(seed, start), label)
        shown = zip(part, pictures_PNHW3, strict=True)
        yes_PN = np.array([[verdict.correct for verdict in scorer.score(one.line, drawn)] for one, drawn in shown])
        verdicts.append(yes_PN)
        first = start * images_per_prompt
        yield from _encoded(first, part, pictures_PNHW3, yes_PN)


def _encoded(
    first: int, prompts: Sequence[Prompt], pictures_PNHW3: Pictures, yes_PN: NDArray[np.bool_]
) -> Iterator[Sample]:
    """The samples of drawn pictures, whose keys count from `first`. The json says each verdict for other readers."""
    number = first
    for prompt, pictures_NHW3, yes_N in zip(prompts, pictures_PNHW3, yes_PN, strict=True):
        for picture, yes in zip(pictures_NHW3, yes_N, strict=True):
            height, width, _ = picture.shape
            record = describe(height, width, prompt.text, answer="yes" if yes else "no")
            yield Sample(f"{number:09d}", {"png": encode_png(picture), "json": record})
            number += 1

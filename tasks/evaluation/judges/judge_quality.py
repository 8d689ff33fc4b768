"""How well a judge tells right from wrong, on pictures that it was not trained on.

Shapes: P prompts, N pictures of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.computing.seeds import derive
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.evaluation_steps import correctness, score_prompts
from tasks.evaluation.judges.judge_choice import Judge
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.evaluation.scorers.scorer_interface import Scorer


@dataclass(frozen=True)
class TestPictures:
    """Pictures (P, N, H, W, 3) drawn for prompts, and the scorer's verdict on each."""

    pictures_PNHW3: Pictures
    yes_PN: NDArray[np.bool_]


def draw_test(painter: Painter, prompts: Sequence[Prompt], scorer: Scorer) -> TestPictures:
    """Draw `judge.images_per_prompt` pictures of each prompt, and have them scored."""
    seed, images = derive(painter.params.compute.seed, "judge test"), painter.params.judge.images_per_prompt
    pictures_PNHW3 = painter.draw([prompt.text for prompt in prompts], images, seed, "judge test")
    return TestPictures(pictures_PNHW3, correctness(score_prompts(prompts, pictures_PNHW3, scorer)))


def scores(judge: Judge, prompts: Sequence[Prompt], test: TestPictures) -> NDArray[np.float64]:
    """The judge's scores (P, N) of each prompt's own pictures. An abstention counts as the surest no."""
    texts = [prompt.text for prompt in prompts]
    return np.nan_to_num(judge.log_yes(test.pictures_PNHW3, texts), nan=-np.inf, neginf=-np.inf)

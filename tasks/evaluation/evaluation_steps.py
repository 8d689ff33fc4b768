"""The steps of an evaluation: verdicts on drawn pictures, the judge's scores, and samples in GenEval's layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.computing import ranks
from tasks.computing.seeds import numpy_generator
from tasks.evaluation.best_of_n import other_prompts
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.geneval_folder import picture_name, result, write_prompt, write_results
from tasks.evaluation.geneval_rules import Verdict
from tasks.evaluation.judges.judge_choice import Judge
from tasks.evaluation.picture_pool import Pool
from tasks.evaluation.prompts.evaluation_prompts import Prompt
from tasks.evaluation.scorers.scorer_interface import Scorer
from tasks.system.progress import progress

SAMPLES = 4
"""Pictures of each prompt that are written in GenEval's layout: as many as GenEval draws. The pool may hold more."""


def score_prompts(prompts: Sequence[Prompt], pictures_PNHW3: Pictures, scorer: Scorer) -> list[list[Verdict]]:
    """The scorer's verdicts on the pictures of each prompt that is dealt to this rank."""
    verdicts, own = [], ranks.dealt(len(prompts))
    with progress("scoring", len(own)) as meter:
        for place in own:
            verdicts.append(scorer.score(prompts[place].line, pictures_PNHW3[place]))
            meter.advance()
    return verdicts


def correctness(verdicts: Sequence[Sequence[Verdict]]) -> NDArray[np.bool_]:
    """The verdicts of all ranks as a matrix (P, N), on every rank."""
    return np.array(ranks.collect([[verdict.correct for verdict in row] for row in verdicts]))


def all_reasons(verdicts: Sequence[Sequence[Verdict]]) -> list[list[str]]:
    """The reasons of all ranks' verdicts, by prompt and picture, on every rank."""
    return ranks.collect([[verdict.reason for verdict in row] for row in verdicts])


def judge_pool(
    prompts: list[Prompt],
    pictures_PNHW3: Pictures,
    verdicts: Sequence[Sequence[Verdict]],
    judge: Judge,
    seed: int,
    shuffled_control: bool,
) -> Pool:
    """The pool with the judge's scores of each picture: for its own prompt and, as a control, for another prompt."""
    texts = [prompt.text for prompt in prompts]
    judged_PN = judge.log_yes(pictures_PNHW3, texts)
    shuffled_PN = np.full_like(judged_PN, np.nan)
    if shuffled_control:
        others = other_prompts(len(prompts), numpy_generator(seed, "shuffled prompts"))
        shuffled_PN = judge.log_yes(pictures_PNHW3, [texts[i] for i in others])
    return Pool(prompts, pictures_PNHW3, correctness(verdicts), judged_PN, shuffled_PN)


def write_samples(folder: Path, pool: Pool, verdicts: Sequence[Sequence[Verdict]]) -> None:
    """Write the first pictures of each prompt in GenEval's layout, with their lines of results.

    Each rank writes the pictures of its prompts, and rank 0 the lines.
    """
    own = ranks.dealt(len(pool.prompts))
    rows = []
    for number, found in zip(own, verdicts, strict=True):
        line = pool.prompts[number].line
        write_prompt(folder, number, line, pool.pictures_PNHW3[number][:SAMPLES])
        names = (picture_name(number, sample) for sample in range(SAMPLES))
        rows.append([result(name, line, verdict) for name, verdict in zip(names, found, strict=False)])
    lines = [line for of_prompt in ranks.collect(rows) for line in of_prompt]
    if ranks.rank() == 0:
        write_results(folder / "results.jsonl", lines)

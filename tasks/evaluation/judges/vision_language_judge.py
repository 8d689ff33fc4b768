"""A judge that is a published vision-language model: it is shown a picture with its prompt and asked for yes or no.

SANA-1.5 asks its judge in these words (section 2.5), but it takes the raw score of the answer's first token and
compares pictures in pairs, with two questions for each pair. Here we leave the paper. The score is log P(yes) among yes
and no: the probability that the answer's first token begins a "yes", divided by the probability that it begins a "yes"
or a "no". So a picture is asked about once, and scores of different pictures can be compared. A model that transformers
knows needs one forward pass for it (`image_text_model`); a model that brings its own code generates a whole answer
(`remote_code_model`).

The judge abstains (NaN) if its answer is probably neither, or does not come in time. Answers are kept in a cache, so
each question is asked once, whichever run asks it.

Shapes: P prompts, N pictures of each, B questions of a batch, V words of the vocabulary.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.module import register_module_forward_pre_hook

from tasks.computing import ranks
from tasks.data.published_files import content_digest
from tasks.evaluation.judges.answering_model import AnsweringModel
from tasks.evaluation.judges.image_text_model import load_image_text_model
from tasks.evaluation.judges.judge_answers import Answer, Key, ScoreCache
from tasks.evaluation.judges.judge_template import QUESTION
from tasks.evaluation.judges.remote_code_model import is_asked_through_its_own_code, load_remote_code_model
from tasks.system.manifest import sha256_json
from tasks.system.progress import progress

LEAST_ANSWER_MASS = 0.01
"""If yes and no together are less probable than this, the model is about to say something else, and abstains."""


@dataclass(frozen=True)
class VisionLanguageJudge:
    """A `Judge` (see `judge_choice`) that asks `answerer`, whose name in the cache is `digest`.

    A batch that takes longer than `time_limit` seconds is given up at the next layer. Its questions are asked again in
    the next run.
    """

    answerer: AnsweringModel
    digest: str
    cache: ScoreCache
    batch_size: int
    time_limit: float

    def log_yes(self, pictures_PNHW3: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Scores (P, N): log P(yes) of the N pictures of each of P prompts, NaN where the judge abstains."""
        questions = [QUESTION.format(prompt=prompt) for prompt in prompts]
        asked: dict[Key, NDArray[np.uint8]] = {}
        keys_PN = []
        for pictures_NHW3, question in zip(pictures_PNHW3, questions, strict=True):
            keys_PN.append([(picture_digest(picture), question, self.digest) for picture in pictures_NHW3])
            asked |= dict(zip(keys_PN[-1], pictures_NHW3, strict=True))
        answers = self._answers(asked)
        return np.array([[score(answers.get(key)) for key in row] for row in keys_PN])

    def _answers(self, asked: dict[Key, NDArray[np.uint8]]) -> dict[Key, Answer]:
        """The answers of the cache, and the model's answers to the other questions; none where time ran out.

        The keys are cut into batches before the cache is read, and before ranks share them. A run that was never
        stopped forms the same batches as a resumed one, on any number of ranks, and so gets the same numbers.
        """
        keys, answers = list(asked), {}
        starts = range(0, len(keys), self.batch_size)
        with progress("vision-language judge", len(keys)) as meter:
            for place in ranks.dealt(len(starts)):
                batch = keys[starts[place] : starts[place] + self.batch_size]
                known = dict(zip(batch, self.cache.get(batch), strict=True))
                unknown = [key for key in batch if known[key] is None]
                if unknown:
                    fresh = self._ask([asked[key] for key in unknown], [question for _, question, _ in unknown])
                    known |= dict(zip(unknown, fresh, strict=True))
                    self.cache.put((key, known[key]) for key in unknown if known[key] is not None)
                answers |= {key: answer for key, answer in known.items() if answer is not None}
                meter.advance(len(batch))
        parts = ranks.gather([[key, answer] for key, answer in answers.items()])  # JSON: tuples come back as lists
        return {tuple(key): tuple(answer) for part in parts for key, answer in part}

    def _ask(self, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]) -> list[Answer | None]:
        """The answers of one forward pass. If it takes too long, every answer is None."""
        try:
            with deadline(self.time_limit), torch.no_grad():
                logits_BV = self.answerer.answer_logits(pictures, questions).double().cpu()
        except TimeoutError:
            return [None] * len(questions)
        log_BV = logits_BV.log_softmax(dim=-1).nan_to_num(nan=-torch.inf)
        sides = [log_BV[:, list(tokens)].logsumexp(dim=-1).tolist() for tokens in (self.answerer.yes, self.answerer.no)]
        return list(zip(*sides, strict=True))


def score(answer: Answer | None) -> float:
    """log P(yes) among yes and no. NaN if there is no answer, or if the answer is probably neither."""
    if answer is None:
        return np.nan
    log_yes, log_no = answer
    either = np.logaddexp(log_yes, log_no)
    return float(log_yes - either) if either >= np.log(LEAST_ANSWER_MASS) else np.nan


def picture_digest(picture_HW3: NDArray[np.uint8]) -> str:
    """The sha256, in hex, of a picture's size and pixels."""
    return hashlib.sha256(repr(picture_HW3.shape).encode() + np.ascontiguousarray(picture_HW3).tobytes()).hexdigest()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError once the `with` block has taken so many seconds.

    The time is checked whenever a module of any network is called, and at the end of the block.
    """
    end = time.monotonic() + seconds

    def check(*_: object) -> None:
        if time.monotonic() > end:
            raise TimeoutError

    hook = register_module_forward_pre_hook(check)
    try:
        yield
        check()
    finally:
        hook.remove()


def load_vision_language_judge(
    folder: Path,
    *,
    cache: ScoreCache,
    remote_code: bool = False,
    batch_size: int,
    time_limit: float,
    dtype: str,
    device: str,
) -> VisionLanguageJudge:
    """The judge that a model's folder holds. Nothing is fetched from the network.

    Raises UserError naming the folder if it holds no vision-language model, if the model cannot be asked, or if it
    brings Python code of its own and `remote_code` is false.
    """
    digest = sha256_json({"model": content_digest(folder), "dtype": dtype})
    answerer: AnsweringModel
    if is_asked_through_its_own_code(folder):
        answerer = load_remote_code_model(folder, remote_code=remote_code, device=device)
    else:
        answerer = load_image_text_model(folder, remote_code=remote_code, dtype=dtype, device=device)
    return VisionLanguageJudge(answerer, digest, cache, batch_size, time_limit)

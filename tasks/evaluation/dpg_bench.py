"""DPG-Bench (Hu et al. 2024): prompts of a paragraph, and questions on each that are answered with yes or no.

The file of questions is the published `dpg_bench.csv`, with a row for each question: `item_id` and `text` of the
prompt, `proposition_id`, `dependency` (the questions that must be answered yes first, separated by commas; 0 is none),
`tuple` (`entity - whole (truck)`, whose words before the bracket are the category) and `question_natural_language`.

A picture's score is the share of its prompt's questions that are answered yes, where a question counts as no if one
that it depends on does. A prompt's score is the mean of its pictures, and the benchmark's the mean of its prompts, in
percent. The scores of categories are shares of the answers themselves, before dependencies.

Here we leave the published script in three places. It skips the first row of questions, and so loses the first prompt.
It takes categories from the last of a prompt's pictures; here they are of all. And it asks mPLUG's question answering,
where we ask any vision-language model, whose scores are not those of published tables.

Shapes: N pictures of a prompt, Q questions.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.computing.seeds import numpy_generator
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.score_statistics import Interval, score
from tasks.system.errors import UserError

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
QUESTION = "{question} Answer with 'yes' or 'no'."
"""What a vision-language model is asked. The second sentence is ours: mPLUG's model needs no such request."""
PICTURES_PER_PROMPT = 4
"""The published script draws four pictures of each prompt."""
PROMPTS_AT_ONCE = 16
"""Prompts whose pictures are in memory at a time."""

NOTE = (
    "Answered by a vision-language model that is not mPLUG's, which published scores are from: compare these scores "
    "only with scores by the same model."
)

Ask = Callable[[Sequence[Pictures], Sequence[str]], NDArray[np.float64]]
"""log P(yes) of each question about its own picture, NaN for a question that is answered with neither yes nor no."""


@dataclass(frozen=True)
class Question:
    """A question on a prompt's pictures, and the numbers of the questions that it depends on."""

    number: int
    text: str
    parents: tuple[int, ...]
    category: str


@dataclass(frozen=True)
class QuestionedPrompt:
    """A prompt with its questions, in the order of the file."""

    name: str
    text: str
    questions: tuple[Question, ...]


def read_questions(file: Path) -> list[QuestionedPrompt]:
    """The prompts of a file in DPG-Bench's form. A row that repeats a question's number replaces it, as published.

    Raises UserError naming the file, and the line, that cannot be read.
    """
    texts: dict[str, str] = {}
    questions: dict[str, dict[int, Question]] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            if lacking := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise UserError(f"{file} has no column {lacking[0]}: it must be in the form of dpg_bench.csv")
            for row in rows:
                question = _question(row, f"{file} line {rows.line_num}")
                if Path(row["item_id"]).name != row["item_id"]:
                    raise UserError(f"{file} line {rows.line_num}: item_id {row['item_id']!r} is no name of a file")
                texts.setdefault(row["item_id"], row["text"] or "")
                questions.setdefault(row["item_id"], {})[question.number] = question
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}): name a file in the form of dpg_bench.csv") from None
    if not texts:
        raise UserError(f"{file} holds no questions: it must be in the form of dpg_bench.csv")
    return [QuestionedPrompt(name, text, tuple(questions[name].values())) for name, text in texts.items()]


def _question(row: dict[str, str | None], where: str) -> Question:
    """The question of a row. Raises UserError naming the line if a number is none, or a text is missing."""
    if empty := [name for name in COLUMNS if name != "text" and not (row[name] or "").strip()]:
        raise UserError(f"{where} has no {empty[0]}")
    number, dependency, category, text = (str(row[name]) for name in COLUMNS[2:])
    try:
        parents = tuple(int(part) for part in dependency.split(",") if int(part) != 0)
        return Question(int(number), text.strip(), parents, category.split("(")[0].strip())
    except ValueError:
        raise UserError(
            f"{where}: proposition_id {number!r} and dependency {dependency!r} must be numbers, separated by commas"
        ) from None


def with_dependencies(questions: Sequence[Question], yes_NQ: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The answers where a question counts as no if one that it depends on does.

    Questions are taken in their order, as the published script takes them. So a no passes on to the questions behind
    it, and a question that stands before the one it depends on sees that one's own answer. A dependency on a number
    that the prompt does not have is passed over; the published script drops the whole picture.
    """
    place = {question.number: index for index, question in enumerate(questions)}
    counted_NQ = yes_NQ.copy()
    for index, question in enumerate(questions):
        for parent in question.parents:
            if parent in place:
                counted_NQ[:, index] &= counted_NQ[:, place[parent]]
    return counted_NQ


def answer_prompts(
    prompts: Sequence[QuestionedPrompt], pictures_of: Callable[[int], Sequence[Pictures]], ask: Ask
) -> list[NDArray[np.float64]]:
    """log P(yes) (N, Q) of every question about every picture of its prompt.

    `pictures_of` gives the pictures of the prompt at a place. It is called when its prompt's turn comes, so that few
    pictures are in memory.
    """
    answers = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        shown: list[Pictures] = []
        texts: list[str] = []
        shapes = []
        for place in range(start, min(start + PROMPTS_AT_ONCE, len(prompts))):
            pictures, questions = pictures_of(place), prompts[place].questions
            shapes.append((len(pictures), len(questions)))
            for picture in pictures:
                shown += [picture] * len(questions)
                texts += [QUESTION.format(question=question.text) for question in questions]
        parts = np.split(ask(shown, texts), np.cumsum([n * q for n, q in shapes])[:-1])
        answers += [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    return answers


def is_yes(log_yes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether yes is the likelier answer. As published, an answer that is neither yes nor no is no."""
    with np.errstate(invalid="ignore"):
        return log_yes > np.log(0.5)


def summarize_answers(
    prompts: Sequence[QuestionedPrompt], log_yes: Sequence[NDArray[np.float64]], samples: int, seed: int
) -> dict[str, Any]:
    """The benchmark's score and its categories in percent, with 95 % bootstrap intervals over prompts.

    `log_yes` has the answers (N, Q) to each prompt's questions. `categories` has the broad ones (`entity`) and
    `detailed` those of the tuples (`entity - whole`). `neither` counts the answers that were neither yes nor no.
    """
    scores_P1 = np.array(
        [
            [with_dependencies(prompt.questions, is_yes(answers)).mean()]
            for prompt, answers in zip(prompts, log_yes, strict=True)
        ]
    )

    def percent(shares: NDArray[np.floating], *names: str) -> dict[str, float]:
        rng = numpy_generator(seed, "dpg bootstrap", *names)
        return asdict(_times(100, score(shares, ["dpg"] * len(shares), samples, rng).overall))

    def of_categories(name_of: Callable[[Question], str]) -> dict[str, dict[str, float]]:
        names = sorted({name_of(question) for prompt in prompts for question in prompt.questions})
        return {name: percent(_answers_of(name, name_of, prompts, log_yes), name) for name in names}

    return {
        **percent(scores_P1),
        "prompts": len(prompts),
        "pictures": sum(len(answers) for answers in log_yes),
        "questions": sum(len(prompt.questions) for prompt in prompts),
        "neither": int(sum(np.isnan(answers).sum() for answers in log_yes)),
        "categories": of_categories(broad_category),
        "detailed": of_categories(lambda question: question.category),
        "note": NOTE,
    }


def broad_category(question: Question) -> str:
    """The first part of a category: `entity` of `entity - whole`."""
    return question.category.split("-")[0].strip()


def _answers_of(
    name: str,
    name_of: Callable[[Question], str],
    prompts: Sequence[QuestionedPrompt],
    log_yes: Sequence[NDArray[np.float64]],
) -> NDArray[np.float64]:
    """The answers, as 0 and 1, to the questions of one category: a row for each prompt that has some, padded by NaN."""
    rows = []
    for prompt, answers in zip(prompts, log_yes, strict=True):
        chosen = [index for index, question in enumerate(prompt.questions) if name_of(question) == name]
        if chosen:
            rows.append(is_yes(answers[:, chosen]).ravel().astype(np.float64))
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in rows])


def _times(factor: float, interval: Interval) -> Interval:
    return Interval(factor * interval.value, factor * interval.low, factor * interval.high)


def cut_grid(picture_HW3: Pictures, pictures: int) -> list[Pictures]:
    """The 1 or 4 pictures of a file; four lie two by two, as the published script wants them.

    Raises ValueError if a side of four is odd.
    """
    if pictures == 1:
        return [picture_HW3]
    height, width = picture_HW3.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"{width} by {height} pixels cannot be cut into two by two pictures")
    high, wide = height // 2, width // 2
    return [picture_HW3[top : top + high, left : left + wide] for top in (0, high) for left in (0, wide)]


def answer_rows(
    prompts: Sequence[QuestionedPrompt], log_yes: Sequence[NDArray[np.float64]]
) -> Iterable[dict[str, str | int | float]]:
    """A row for each answer: prompt, picture, question, P(yes) (empty if it was neither), and whether it counts yes."""
    for prompt, answers in zip(prompts, log_yes, strict=True):
        counted = with_dependencies(prompt.questions, is_yes(answers))
        for picture, (logs, yes) in enumerate(zip(answers, counted, strict=True)):
            for question, log, counts in zip(prompt.questions, logs, yes, strict=True):
                yield {
                    "item_id": prompt.name,
                    "picture": picture,
                    "proposition_id": question.number,
                    "question": question.text,
                    "p_yes": "" if np.isnan(log) else f"{np.exp(log):.6f}",
                    "counts": int(counts),
                }

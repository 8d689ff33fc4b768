"""Prompts for evaluation and for the judge's training, over the six tasks in GenEval's schema.

`tasks.data.scene_vocabulary.is_held_out` says which combinations training never sees.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import TASKS, Line, combination, is_held_out, lines
from tasks.evaluation.prompts.prompt_lines import check_line, read_lines
from tasks.params.experiment_params import Params
from tasks.params.user_files import own_path
from tasks.system.errors import UserError
from tasks.system.files import read_json, write_json

T = TypeVar("T")
MATCHING = "matching"
"""The one task of the scorer matching."""
ALL_TASKS = (*TASKS, MATCHING)
"""GenEval's tasks, and that of the scorer matching."""


@dataclass(frozen=True)
class Prompt:
    """One line in GenEval's schema, and whether the training captions state its combination (None if not known)."""

    line: Line
    seen: bool | None

    @property
    def text(self) -> str:
        """The words that the model is given. The published inference strips them too (scripts/inference_geneval.py)."""
        return self.line["prompt"].strip()

    @property
    def tag(self) -> str:
        """The prompt's task."""
        return self.line["tag"]


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as a file of JSON."""
    write_json(path, [{"line": prompt.line, "seen": prompt.seen} for prompt in prompts])


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file that `write_prompts` wrote. Raises UserError naming the file if it is missing or broken."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} holds no prompts: run the stage that writes it again")
    return [_read_prompt(row, f"{path}: prompt {number}") for number, row in enumerate(rows)]


def _read_prompt(row: Any, where: str) -> Prompt:
    """A prompt as `write_prompts` has written it. Raises UserError, naming `where`, if it is none."""
    if not isinstance(row, dict) or not row.keys() >= {"line", "seen"} or not isinstance(row["seen"], bool | None):
        raise UserError(f"{where} has no line and seen: run the stage that writes it again")
    return Prompt(check_line(row["line"], where), row["seen"])


def chosen_prompts(params: Params) -> list[Prompt]:
    """The prompts that the scorer geneval asks for: prompts of scenes, or the prompts in the file `geneval.prompts`.

    For prompts of a file it is not known whether they were seen in training. Raises UserError if the file, or a line of
    it, cannot be read.
    """
    path = params.geneval.prompts
    if path is None:
        return evaluation_prompts(params.compute.seed, params.geneval.prompts_per_task)
    return [Prompt(line, seen=None) for line in read_lines(own_path(path))]


def evaluation_prompts(seed: int, prompts_per_task: int) -> list[Prompt]:
    """Distinct prompts, task by task: `prompts_per_task` of each, or all if a task has fewer.

    Half of a task's prompts state held-out combinations, as far as it has any. With 20 prompts these are 6 of
    two_object, 10 each of colors, position and color_attr, and none of single_object and counting.
    """
    return [prompt for tag in TASKS for prompt in _choose(seed, tag, prompts_per_task)]


def judge_prompts(seed: int, count: int, evaluation: Iterable[Prompt]) -> list[Prompt]:
    """Up to `count` distinct prompts over all tasks to train the judge on. All state combinations seen in training.

    Evaluation prompts are left out, and so are prompts that state the same combination in the other order. If that
    leaves a task no prompts, it keeps all of them (single_object and counting, where the evaluation uses all there
    are). Tasks take turns until the count is reached or all prompts are used up. So small tasks are used whole, and
    large ones fill the rest.
    """
    taken = {combination(prompt.line) for prompt in evaluation}
    queues = []
    for tag in TASKS:
        seen = [line for line in lines(tag) if not is_held_out(line)]
        free = [line for line in seen if combination(line) not in taken] or seen
        queues.append(_shuffled(seed, "judge prompts", tag, free))
    turns = take_turns(queues)
    return [Prompt(line, seen=True) for line in turns][:count]


def take_turns(queues: Iterable[Iterable[T]]) -> Iterator[T]:
    """The first item of each queue, then the second of each queue that has one, and so on."""
    absent = object()
    return (item for item in chain.from_iterable(zip_longest(*queues, fillvalue=absent)) if item is not absent)


def _choose(seed: int, tag: str, count: int) -> list[Prompt]:
    """`count` prompts of a task: half held-out, rounded down and as far as there are any, and the rest seen."""
    drawn = _shuffled(seed, "evaluation prompts", tag, lines(tag))
    unseen = [line for line in drawn if is_held_out(line)]
    seen = [line for line in drawn if not is_held_out(line)]
    from_unseen = min(len(unseen), count // 2)
    return [Prompt(line, False) for line in unseen[:from_unseen]] + [
        Prompt(line, True) for line in seen[: count - from_unseen]
    ]


def _shuffled(seed: int, purpose: str, tag: str, choices: Iterable[Line]) -> list[Line]:
    choices = list(choices)
    return [choices[index] for index in numpy_generator(seed, purpose, tag).permutation(len(choices))]

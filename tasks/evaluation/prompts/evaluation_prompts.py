"""Prompts for evaluation and for the judge's training, over the six tasks in GenEval's schema.

What was not seen in training is told apart by `tasks.data.scene_vocabulary.is_held_out`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import TASKS, Line, combination, is_held_out, lines
from tasks.evaluation.prompts.prompt_lines import read_lines
from tasks.params.experiment import Params
from tasks.params.user_files import own_path

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """One line in GenEval's schema, and whether captions of training pictures state its combination (None: unknown)."""

    line: Line
    seen: bool | None

    @property
    def text(self) -> str:
        """The words given to the model."""
        return self.line["prompt"]

    @property
    def tag(self) -> str:
        """The task."""
        return self.line["tag"]


def chosen_prompts(params: Params) -> list[Prompt]:
    """The prompts that models are scored on: the scenes' own, or those of the file that `geneval.prompts` names.

    Whether the training pictures show what a file's prompts ask for is not known. Raises UserError if the file or a
    line of it cannot be read.
    """
    path = params.geneval.prompts
    if path is None:
        return evaluation_prompts(params.compute.seed, params.geneval.prompts_per_task)
    return [Prompt(line, seen=None) for line in read_lines(own_path(path))]


def evaluation_prompts(seed: int, prompts_per_task: int) -> list[Prompt]:
    """Distinct prompts of each task, `prompts_per_task` of them or as many as there are, task by task.

    Half of a task's prompts are of held-out combinations, as far as there are any (20 prompts: 6 of 20 two-object
    prompts, 10 of 20 of colors, position and color_attr; none of single_object and counting).
    """
    return [prompt for tag in TASKS for prompt in _choose(seed, tag, prompts_per_task)]


def judge_prompts(seed: int, count: int, evaluation: Iterable[Prompt]) -> list[Prompt]:
    """Up to `count` distinct prompts over all tasks to train the judge on, only of combinations seen in training.

    Evaluation prompts, and those that state the same combination in the other order, are left out. Tasks of which that
    leaves nothing (single_object and counting, where evaluation uses all there are) keep all their prompts. Tasks take
    turns until the count is reached or all are used up, so that small tasks are whole and large ones fill the rest.
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
    """The first of each queue, then the second of each that has one, and so on: large queues fill the rest."""
    absent = object()
    return (item for item in chain.from_iterable(zip_longest(*queues, fillvalue=absent)) if item is not absent)


def _choose(seed: int, tag: str, count: int) -> list[Prompt]:
    """Half held-out prompts of a task, as far as there are, and seen ones for the rest (they are the larger half)."""
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

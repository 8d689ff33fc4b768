"""The prompts whose pictures the judge learns from and is measured on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import TASKS, combination, is_held_out, lines
from tasks.evaluation.prompts.evaluation_prompts import Prompt, judge_prompts, take_turns
from tasks.evaluation.prompts.object_prompts import object_prompts
from tasks.params.experiment_params import Params

UNSEEN_SHARE = 4
"""There is one prompt of an unseen combination for every so many training prompts."""


@dataclass(frozen=True)
class JudgePrompts:
    """The prompts to train a judge on, to measure it on, and to set the threshold of adaptive best of N on."""

    training: list[Prompt]
    unseen: list[Prompt]
    calibration: list[Prompt]


def prompts_of_objects(params: Params, evaluation: Sequence[Prompt]) -> JudgePrompts:
    """The judge's prompts with the scorer geneval. The detector can find what they ask for.

    The evaluation's prompts are left out, as far as tasks have others. For scenes, the judge is measured on
    combinations that the small model was not trained on. For COCO's classes it is not known which combinations a model
    was trained on, so the prompts to measure on are only different from those to train on.
    """
    seed, count = params.compute.seed, params.judge.prompts
    if params.geneval.detector == "scenes":
        prompts = judge_prompts(seed, count, evaluation)
        unseen = unseen_prompts(seed, max(len(prompts) // UNSEEN_SHARE, 1), evaluation)
    else:
        prompts = object_prompts(seed, "judge prompts", count, evaluation)
        others = max(len(prompts) // UNSEEN_SHARE, 1)
        unseen = object_prompts(seed, "unseen prompts", others, [*evaluation, *prompts])
    return JudgePrompts(prompts, unseen, prompts[: params.judge.calibration_prompts])


def unseen_prompts(seed: int, count: int, evaluation: Iterable[Prompt]) -> list[Prompt]:
    """Up to `count` prompts of combinations that neither the judge nor the small model is trained on; tasks take turns.

    The evaluation's combinations are left out too, unless that leaves a task nothing.
    """
    taken = {combination(prompt.line) for prompt in evaluation}
    queues = []
    for tag in TASKS:
        held_out = [line for line in lines(tag) if is_held_out(line)]
        free = [line for line in held_out if combination(line) not in taken] or held_out
        order = numpy_generator(seed, "unseen prompts", tag).permutation(len(free))
        queues.append([free[i] for i in order])
    return [Prompt(line, seen=False) for line in take_turns(queues)][:count]

"""The prompts whose pictures the judge learns from and is measured on."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import TASKS, combination, is_held_out, lines
from tasks.evaluation.prompts.evaluation_prompts import Prompt, judge_prompts, take_turns
from tasks.evaluation.prompts.object_prompts import object_prompts
from tasks.params.experiment_params import Params
from tasks.system.errors import UserError

UNSEEN_SHARE = 4
"""There is one prompt of an unseen combination for every so many training prompts."""


@dataclass(frozen=True)
class JudgePrompts:
    """The prompts to train a judge on, to measure it on, and to set the threshold of adaptive best of N on."""

    training: list[Prompt]
    unseen: list[Prompt]
    calibration: list[Prompt]


@dataclass(frozen=True)
class ExamplePrompts:
    """The prompts of the pictures that a vision-language judge is fine-tuned on, and of those it is measured on."""

    train: list[Prompt]
    heldout: list[Prompt]


def prompts_of_objects(params: Params, evaluation: Sequence[Prompt]) -> JudgePrompts:
    """The judge's prompts with the scorer geneval. The detector can find what they ask for.

    The evaluation's prompts are left out, as far as tasks have others. For scenes, the judge is measured on
    combinations that the small model was not trained on. For COCO's classes it is not known which combinations a model
    was trained on, so the prompts to measure on are only different from those to train on.
    """
    prompts = _to_learn(params, params.judge.prompts, evaluation)
    unseen = _to_measure(params, max(len(prompts) // UNSEEN_SHARE, 1), evaluation, prompts)
    return JudgePrompts(prompts, unseen, prompts[: params.judge.calibration_prompts])


def prompts_of_examples(params: Params, evaluation: Sequence[Prompt]) -> ExamplePrompts:
    """The prompts whose pictures a vision-language judge is fine-tuned and measured on.

    No combination that the evaluation asks for is among them, as for the published judge (appendix B). A task whose
    combinations the evaluation asks for one and all is left out: single_object, and for scenes counting. Raises
    UserError if no prompt is left.
    """
    chosen = params.judge_finetune
    asked = {combination(prompt.line) for prompt in evaluation}
    training = _others(_to_learn(params, chosen.prompts, evaluation), asked)
    learned = {combination(prompt.line) for prompt in training}
    heldout = _others(_to_measure(params, chosen.heldout_prompts, evaluation, training), asked | learned)
    if not training or not heldout:
        raise UserError(
            "params.yaml: judge_finetune: the evaluation asks for every combination that there is: lower "
            "geneval.prompts_per_task, or name GenEval's own prompts as geneval.prompts"
        )
    return ExamplePrompts(training, heldout)


def _to_learn(params: Params, count: int, evaluation: Iterable[Prompt]) -> list[Prompt]:
    """Up to `count` prompts to train a judge on."""
    if params.geneval.detector == "scenes":
        return judge_prompts(params.compute.seed, count, evaluation)
    return object_prompts(params.compute.seed, "judge prompts", count, evaluation)


def _to_measure(params: Params, count: int, evaluation: Sequence[Prompt], training: Sequence[Prompt]) -> list[Prompt]:
    """Up to `count` prompts to measure a judge on that is trained on `training`."""
    if params.geneval.detector == "scenes":
        return unseen_prompts(params.compute.seed, count, evaluation)
    return object_prompts(params.compute.seed, "unseen prompts", count, [*evaluation, *training])


def _others(prompts: Iterable[Prompt], taken: Collection[tuple[str, ...]]) -> list[Prompt]:
    """The prompts that state none of these combinations."""
    return [prompt for prompt in prompts if combination(prompt.line) not in taken]


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

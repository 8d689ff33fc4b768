"""Draws one prompt with several models of an experiment from the same noise, for a person who compares them.

The models start from the noise that `python -m tasks.generate` takes for the same seed, so both draw the same pictures.
One model is in memory at a time. `python -m flows.demo` shows the pictures on a page.
"""

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import ceil, isnan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.prompts.evaluation_prompts import read_prompts
from tasks.evaluation.scorers.scorer_choice import PROMPTS
from tasks.generate import (
    best_first_order,
    draw_from_seed,
    judge_scores,
    open_painter,
    picture_record,
    require_beside,
)
from tasks.params.experiment_params import Params
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.readable_digits import three_significant_digits
from tasks.tracking.model_registry import describe, params_of

Report = Callable[[str, float], object]
"""A function that is told what is done now, and which part of the work is done, from 0 to 1."""

PROMPT_OF_SCENES = "a photo of a red circle and a blue square"
MOST_PICTURES, MOST_STEPS, MOST_GUIDANCE = 64, 1000, 100
"""The largest values of a wish. A slip of the finger could otherwise keep the machine busy for hours."""
SFT = "sft-"
"""How the name of a model begins that is fine-tuned on chosen pairs (stage `sft@M`)."""
FAMILIES = ("small", "grown", "scratch", "pruned", "finetuned")
"""The families of models in the order in which they are made."""


@dataclass(frozen=True)
class OfferedModel:
    """A finished model of an experiment: its folder, its number of blocks and its number of parameters."""

    folder: Path
    depth: int
    parameters: int

    @property
    def name(self) -> str:
        """`small`, `grown`, `pruned-6`, `finetuned-6` or `sft-grown`."""
        return self.folder.name

    @property
    def size(self) -> str:
        """Its size in words, such as `4 blocks · 1.64 M parameters`."""
        digits = 2 if self.parameters < 1e7 else 0
        return f"{self.depth} block{'s' * (self.depth > 1)} · {self.parameters / 1e6:.{digits}f} M parameters"


@dataclass(frozen=True)
class Wish:
    """What a person asks for: `pictures` of `prompt` by each model. Raises UserError for a value that does not fit."""

    prompt: str
    models: tuple[OfferedModel, ...]
    pictures: int
    seed: int
    steps: int
    guidance: float

    def __post_init__(self) -> None:
        for fits, message in (
            (self.prompt.strip(), "the prompt is empty: write what to draw"),
            (self.models, "no model is ticked: tick at least one"),
            (1 <= self.pictures <= MOST_PICTURES, f"pictures is {self.pictures}: draw 1 to {MOST_PICTURES}"),
            (1 <= self.steps <= MOST_STEPS, f"steps is {self.steps}: take 1 to {MOST_STEPS}"),
            (1 <= self.guidance <= MOST_GUIDANCE, f"guidance is {self.guidance}: take 1 (none) to {MOST_GUIDANCE}"),
        ):
            if not fits:
                raise UserError(message)


@dataclass(frozen=True)
class DrawnByModel:
    """One model's pictures (N, height, width, 3), the judge's scores of them if there is a judge, and the time."""

    model: OfferedModel
    pictures_NHW3: Pictures
    scores_N: NDArray[np.float64] | None
    """log P(yes), NaN where the judge abstains."""
    seconds: float
    """Wall-clock time of drawing all pictures, without loading and judging."""

    @property
    def chosen(self) -> int:
        """The index of the picture that the judge likes best, and of the first one if there is no judge."""
        return int(best_first_order(self.scores_N, len(self.pictures_NHW3))[0])

    def score_text(self, index: int) -> str:
        """The judge's score of a picture, or that the judge abstained; an empty text if there is no judge."""
        if self.scores_N is None:
            return ""
        return "abstained" if isnan(self.scores_N[index]) else three_significant_digits(self.scores_N[index])


def find_outputs(folder: Path) -> Path:
    """The folder `outputs` of an experiment, which is given itself or as the experiment's own folder (`runs/smoke`)."""
    outputs = folder if folder.resolve().name == paths.OUTPUTS.name else folder / paths.OUTPUTS
    if not outputs.is_dir():
        raise UserError(f"{outputs} is no folder: name that of an experiment, such as runs/smoke, or run make run")
    return outputs


def offered_models(outputs: Path) -> list[OfferedModel]:
    """The experiment's finished models, in the order in which they are made. Raises UserError if there is none.

    A stage moves its output into place when it is whole, so a model that has its files is finished.
    """
    found = []
    for weights in outputs.resolve().glob("*/model.safetensors"):
        try:
            facts = describe(weights.parent)
        except SafetensorError as error:
            raise UserError(f"{weights} cannot be read ({error}): delete {weights.parent} and run its stage") from None
        if facts is not None:
            found.append(OfferedModel(outputs / weights.parent.name, int(facts["depth"]), int(facts["parameters"])))
    if not found:
        raise UserError(f"{outputs} has no finished model: run make run, or python -m tasks.pretrain")
    return sorted(found, key=_place)


def _place(model: OfferedModel) -> tuple[int, int, int, bool]:
    """Sorts models into the order of `FAMILIES`, but each pruned model is followed by its own fine-tuned one.

    A model that is fine-tuned on chosen pairs follows the model that it was made of.
    """
    name = model.name.removeprefix(SFT)
    family = FAMILIES.index(name.partition("-")[0])
    return min(family, FAMILIES.index("pruned")), -model.depth, family, name != model.name


def first_prompt(outputs: Path, params: Params) -> str:
    """The prompt that a person meets first: for own pictures it is the first that the models are scored on.

    It is empty for own pictures without the stage `scorer`, which holds the prompts. Raises UserError if its file
    cannot be read.
    """
    if params.shard.source == "scenes":
        return PROMPT_OF_SCENES
    prompts = outputs / paths.SCORER.name / PROMPTS
    return read_prompts(prompts)[0].text if prompts.exists() else ""


def has_judge(outputs: Path) -> bool:
    """Whether the experiment has a judge."""
    return (outputs / paths.JUDGE.name).is_dir()


def draw_side_by_side(wish: Wish, report: Report) -> Iterator[DrawnByModel]:
    """Draw and judge with one model after the other. The judge is that of the model's experiment, if it has one.

    Raises UserError as `tasks.generate.open_painter` does.
    """
    for number, model in enumerate(wish.models):
        yield _draw_with(
            model,
            wish,
            lambda doing, part, done=number, name=model.name: report(
                f"{name}: {doing}", (done + part) / len(wish.models)
            ),
        )


def _draw_with(model: OfferedModel, wish: Wish, report: Report) -> DrawnByModel:
    """Draw and judge with one model; `report` is told which part of this model's work is done."""
    report("loading", 0.0)
    judged = has_judge(model.folder.parent)
    if judged:  # a damaged judge is found before anything is drawn
        require_beside(model.folder, paths.JUDGE.name, "run python -m tasks.judge there")
    params = params_of(model.folder)
    sampling = replace(params.sampling, steps=wish.steps, guidance=wish.guidance)
    painter = open_painter(model.folder, replace(params, sampling=sampling))
    _report_steps(painter, wish, report)
    started = time.perf_counter()
    pictures_NHW3 = draw_from_seed(painter, [wish.prompt], wish.pictures, wish.seed, model.name)[0]
    seconds = time.perf_counter() - started
    scores_N = None
    if judged:
        report("judging", 1.0)
        scores_N = judge_scores(model.folder, painter, pictures_NHW3[None], [wish.prompt])[0]
    return DrawnByModel(model, pictures_NHW3, scores_N, seconds)


def _report_steps(painter: Painter, wish: Wish, report: Report) -> None:
    """Report the done part after each evaluation of the network, of which a batch has one for each step."""
    evaluations = count(1)
    total = wish.steps * ceil(wish.pictures / painter.params.sampling.batch_size)
    painter.network.register_forward_hook(lambda *_: report("drawing", next(evaluations) / total))


def png_bytes(picture_HW3: NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HW3).save(buffer, format="PNG")
    return buffer.getvalue()


def zip_of(wish: Wish, drawn: Sequence[DrawnByModel]) -> bytes:
    """A ZIP file of all pictures (`grown/0000.png`), and `scores.json` with the wish and each model's best first."""
    buffer, models = io.BytesIO(), {}
    with zipfile.ZipFile(buffer, "w") as archive:
        for one in drawn:
            names = [f"{one.model.name}/{number:04}.png" for number in range(len(one.pictures_NHW3))]
            for name, picture in zip(names, one.pictures_NHW3, strict=True):
                archive.writestr(name, png_bytes(picture))
            order_N = best_first_order(one.scores_N, len(names))
            models[one.model.name] = [picture_record(names, one.scores_N, index) for index in order_N]
        asked = {name: getattr(wish, name) for name in ("prompt", "seed", "steps", "guidance")}
        archive.writestr("scores.json", json.dumps(asked | {"models": models}, indent=2) + "\n")
    return buffer.getvalue()

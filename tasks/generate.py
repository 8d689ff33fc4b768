"""Draws pictures of a prompt, or of every line of a file, with any model, and lets the judge choose the best.

    python -m tasks.generate "a photo of a red circle" --model finetuned-6 --n 8 --seed 1 --out pictures
    python -m tasks.generate --prompts prompts.txt --model outputs/grown

It writes PNGs (`00000/0000.png` is the first picture of the first prompt), `scores.json` with the judge's log P(yes) of
each picture, and `sheet.png` with a row for each prompt, best picture first. A single picture of each prompt (`--n 1`)
is not judged, so it needs no judge; `--judge` and `--no-judge` override this. The model is a name (small, grown,
pruned-6, finetuned-6), a folder (runs/smoke/outputs/grown), or an alias of the registry. Autoencoder, text encoder,
judge and params are taken from its experiment. The same prompts, model and seed give the same pictures.
"""

import math
import os
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.computing.seeds import derive
from tasks.evaluation.best_of_n import ranking
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.judges.judge_choice import open_judge
from tasks.evaluation.picture_drawing import Painter, load_painter
from tasks.params.experiment_params import Params
from tasks.runtime.command_line import bad_input_exits, command_parser
from tasks.runtime.torch_setup import configure_torch
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import write_json
from tasks.system.manifest import MANIFEST, verify_manifest
from tasks.tracking.model_registry import params_of, resolve_model

SHEET_SCALE = 4
"""How many times the contact sheet is enlarged, if it stays small enough."""

SHEET_PIXELS = 1 << 24
"""The most pixels of a contact sheet. Beyond this it is enlarged less, or shrunk."""

GAP = 2
"""Pixels around each picture of the contact sheet, before it is enlarged."""


def arguments() -> ArgumentParser:
    """The parser of the command line."""
    options = command_parser("generate", __doc__)
    options.add_argument("prompt", nargs="?", help="what to draw")
    options.add_argument("--prompts", type=Path, help="a text file with one prompt in each line")
    options.add_argument("--model", default="grown", help="name, folder or registry alias (default: grown)")
    options.add_argument("--n", type=int, default=8, help="pictures of each prompt (default: 8)")
    options.add_argument(
        "--judge", action=BooleanOptionalAction, help="score the pictures (default: if a prompt has several)"
    )
    options.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    options.add_argument(
        "--out", type=Path, default=Path("generated"), help="a new folder for the results (default: generated)"
    )
    return options


def generate(options: Namespace) -> None:
    """Draw, judge and write; prints the best picture of each prompt. Raises UserError for options that do not fit."""
    prompts = read_prompts(options)
    if options.n < 1:
        raise UserError(f"--n {options.n}: draw at least 1 picture")
    check_new_folder(options.out)
    judged = options.n > 1 if options.judge is None else options.judge
    model = resolve_model(options.model)
    params = params_of(model)
    if judged:
        require_beside(model, paths.JUDGE.name, "run python -m tasks.judge there, or draw with --no-judge")
    painter = open_painter(model, params)
    pictures_PNHW3 = draw_from_seed(painter, prompts, options.n, options.seed, "generate")
    scores_PN = judge_scores(model, painter, pictures_PNHW3, prompts) if judged else None
    options.out.mkdir(parents=True)
    rows, best_first = [], []
    for number, prompt in enumerate(prompts):
        names = write_pictures(options.out, number, pictures_PNHW3[number])
        scores_N = None if scores_PN is None else scores_PN[number]
        order_N = best_first_order(scores_N, options.n)
        best_first.append(pictures_PNHW3[number][order_N])
        rows.append({"prompt": prompt, "pictures": [picture_record(names, scores_N, i) for i in order_N]})
        print(f"{prompt}: {summary_line(options.out, rows[-1]['pictures'])}", flush=True)
    write_json(options.out / "scores.json", {"model": options.model, "seed": options.seed, "prompts": rows})
    contact_sheet(np.stack(best_first)).save(options.out / "sheet.png")


def check_new_folder(out: Path) -> None:
    """Raises UserError if the folder `out` exists or cannot be made, before hours are spent on what goes into it."""
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists: name a new folder")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be made: {above} is no folder that you may write to")


def draw_from_seed(painter: Painter, prompts: Sequence[str], pictures: int, seed: int, label: str) -> Pictures:
    """Pictures (P, N, height, width, 3) whose noise follows from `seed` alone, so all models start from the same noise.

    `label` names the progress bar.
    """
    return painter.draw(prompts, pictures, derive(seed, "generate"), label)


def best_first_order(scores_N: NDArray[np.float64] | None, pictures: int) -> NDArray[np.int64]:
    """Indices (N,) of a prompt's pictures: best first if they were judged, and else as they were drawn."""
    return np.arange(pictures) if scores_N is None else ranking(scores_N[None])[0]


def judge_scores(model: Path, painter: Painter, pictures_PNHW3: Pictures, prompts: list[str]) -> NDArray[np.float64]:
    """The scores (P, N), log P(yes), of the judge of the model's experiment."""
    folder = model.parent / paths.JUDGE.name
    judge = open_judge(folder, painter.text_encoder, painter.params.compute.dtype, painter.device)
    return judge.log_yes(pictures_PNHW3, prompts)


def picture_record(names: Sequence[str], scores_N: NDArray[np.float64] | None, index: int) -> dict[str, str | float]:
    """A picture's entry in `scores.json`: its file, and its score if the judge gave one (NaN is an abstention)."""
    judged = scores_N is not None and not np.isnan(scores_N[index])
    return {"file": names[index]} | ({"log_yes": float(scores_N[index])} if judged else {})


def summary_line(out: Path, pictures: Sequence[dict[str, str | float]]) -> str:
    """Names the best picture of a prompt, or, if they were not judged, the first one and how many more there are."""
    first = pictures[0]
    if "log_yes" in first:
        return f"best is {out / first['file']} (log P(yes) {first['log_yes']:.3f})"
    others = f" and {len(pictures) - 1} more" if len(pictures) > 1 else ""
    return f"{out / first['file']}{others}"


def read_prompts(options: Namespace) -> list[str]:
    """The prompts of the command line. Raises UserError unless there is one prompt or one file that holds some."""
    if (options.prompt is None) == (options.prompts is None):
        raise UserError("give either a prompt or --prompts FILE")
    if options.prompt is not None:
        prompts = [options.prompt]
        if not _is_text(options.prompt):
            raise UserError("the prompt is no UTF-8 text: write it in UTF-8")
    else:
        try:
            prompts = options.prompts.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {options.prompts} cannot be read ({error}): give a UTF-8 text file") from None
        if not all(map(_is_text, prompts)):
            raise UserError(f"--prompts {options.prompts} holds NUL characters: give a UTF-8 text file, not UTF-16")
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UserError(f"{options.prompts or 'the prompt'} is empty: write what to draw")
    return prompts


def _is_text(prompt: str) -> bool:
    """Whether a prompt has neither NULs, as UTF-16 read as UTF-8 has, nor bytes that are no UTF-8."""
    return "\0" not in prompt and not any("\ud800" <= character <= "\udfff" for character in prompt)


def open_painter(model: Path, params: Params) -> Painter:
    """The painter of a model's folder. Raises UserError if an encoder beside it is missing; says how to make it."""
    device = configure_torch(params, params.compute.threads)
    for name in (paths.AUTOENCODER.name, paths.TEXT_ENCODER.name):
        require_beside(model, name, f"run python -m tasks.{name} there, or make run for all")
    verify_output(model)
    return load_painter(model, params, device)


def require_beside(model: Path, name: str, advice: str) -> None:
    """Raises UserError if the folder `name` is missing beside the model's folder, or is damaged."""
    folder = model.parent / name
    if not folder.is_dir():
        raise UserError(f"{model} has no {name} beside it: {advice}")
    verify_output(folder)


def verify_output(folder: Path) -> None:
    """Check a folder's files by its manifest, as stages do. A user's own folder may have no manifest."""
    if (folder / MANIFEST).is_file():
        verify_manifest(folder)


def write_pictures(folder: Path, prompt: int, pictures_NHW3: Pictures) -> list[str]:
    """Write one prompt's pictures as PNGs; returns their names relative to the folder."""
    names = [f"{prompt:05}/{number:04}.png" for number in range(len(pictures_NHW3))]
    (folder / f"{prompt:05}").mkdir()
    for name, picture in zip(names, pictures_NHW3, strict=True):
        Image.fromarray(picture).save(folder / name)
    return names


def contact_sheet(pictures_PNHW3: Pictures) -> Image.Image:
    """One image of all pictures, with a row for each prompt, enlarged without smoothing within SHEET_PIXELS."""
    padded = np.pad(pictures_PNHW3, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    prompts, pictures, height, width, _ = padded.shape
    sheet = Image.fromarray(padded.transpose(0, 2, 1, 3, 4).reshape(prompts * height, pictures * width, 3))
    scale = min(SHEET_SCALE, math.isqrt(SHEET_PIXELS // (sheet.width * sheet.height)))
    if scale == 0:
        return sheet.reduce(math.ceil(math.sqrt(sheet.width * sheet.height / SHEET_PIXELS)))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. The exit status is 0 if all is done, and 2 for bad input."""
    options = arguments().parse_args(argv)
    with bad_input_exits("generate"):
        generate(options)


if __name__ == "__main__":
    main()

"""Draw pictures of a prompt, or of every line of a file, with any model, and let the judge choose the best.

    python -m tasks.generate "a photo of a red circle" --model finetuned-6 --n 8 --seed 1 --out pictures
    python -m tasks.generate --prompts prompts.txt --model outputs/grown

Writes PNGs (`00000/0000.png`: prompt, picture), `scores.json` with the judge's log P(yes) of each, and `sheet.png`: a
row for each prompt, best picture first. The model is a name (small, grown, pruned-6, finetuned-6), a folder
(runs/smoke/outputs/grown), or an alias of the registry; autoencoder, text encoder, judge and params are those of its
experiment. The same prompts, model and seed give the same pictures.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tasks import layout
from tasks.errors import UserError
from tasks.files import MANIFEST, verify_manifest, write_json
from tasks.geneval.best_of_n import ranking
from tasks.geneval.detector import Pictures
from tasks.geneval.judges import open_judge
from tasks.geneval.pictures import Painter, load_painter
from tasks.params import Params
from tasks.registry import params_of, resolve_model
from tasks.seeds import derive
from tasks.stage import bad_input_exits, configure_torch, parser

SHEET_SCALE = 4
GAP = 2
"""Enlargement of the contact sheet, and pixels between its pictures before that."""


def arguments() -> ArgumentParser:
    """The command line."""
    options = parser("generate", __doc__)
    options.add_argument("prompt", nargs="?", help="what to draw")
    options.add_argument("--prompts", type=Path, help="a text file with one prompt in each line")
    options.add_argument("--model", default="grown", help="name, folder or registry alias (default: grown)")
    options.add_argument("--n", type=int, default=8, help="pictures of each prompt (default: 8)")
    options.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    options.add_argument("--out", type=Path, default=Path("generated"), help="new folder (default: generated)")
    return options


def generate(options: Namespace) -> None:
    """Draw, judge and write; prints the best picture of each prompt."""
    prompts = read_prompts(options)
    if options.n < 1:
        raise UserError(f"--n {options.n}: draw at least 1 picture")
    if options.out.exists():
        raise UserError(f"--out {options.out} exists: name a new folder")
    model = resolve_model(options.model)
    params = params_of(model)
    painter = open_painter(model, params)
    folder = model.parent / layout.JUDGE.name
    judge = open_judge(folder, painter.text_encoder, params.compute.dtype, painter.device)
    pictures_PNHW3 = painter.draw(prompts, options.n, derive(options.seed, "generate"), "generate")
    scores_PN = judge.log_yes(pictures_PNHW3, prompts)
    order_PN = ranking(scores_PN)
    options.out.mkdir(parents=True)
    rows = []
    for number, prompt in enumerate(prompts):
        names = write_pictures(options.out, number, pictures_PNHW3[number])
        best = order_PN[number, 0]
        print(f"{prompt}: best is {options.out / names[best]} (log P(yes) {scores_PN[number, best]:.3f})", flush=True)
        judged = [{"file": names[i], "log_yes": float(scores_PN[number, i])} for i in order_PN[number]]
        rows.append({"prompt": prompt, "pictures": judged})
    ranked = np.take_along_axis(pictures_PNHW3, order_PN[:, :, None, None, None], axis=1)
    contact_sheet(ranked).save(options.out / "sheet.png")
    write_json(options.out / "scores.json", {"model": options.model, "seed": options.seed, "prompts": rows})


def read_prompts(options: Namespace) -> list[str]:
    """The prompts of the command line. Raises UserError unless there is exactly one source of them, and some."""
    if (options.prompt is None) == (options.prompts is None):
        raise UserError("give either a prompt or --prompts FILE")
    if options.prompt is not None:
        prompts = [options.prompt]
    else:
        try:
            prompts = options.prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {options.prompts} cannot be read ({error}): give a UTF-8 text file") from None
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UserError(f"{options.prompts or 'the prompt'} is empty: write what to draw")
    return prompts


def open_painter(model: Path, params: Params) -> Painter:
    """The painter of a model's folder. Raises UserError saying what is missing beside it and how to make it.

    What a stage wrote is held to its manifest, as it is when a stage reads it.
    """
    device = configure_torch(params, params.compute.threads)
    for name in (layout.AUTOENCODER.name, layout.TEXT_ENCODER.name, layout.JUDGE.name):
        if not (model.parent / name).is_dir():
            raise UserError(f"{model} has no {name} beside it: run python -m tasks.{name} there, or make run for all")
    for name in (model.name, layout.AUTOENCODER.name, layout.TEXT_ENCODER.name, layout.JUDGE.name):
        if (model.parent / name / MANIFEST).is_file():
            verify_manifest(model.parent / name)
    try:
        return load_painter(model, params, device)
    except ValueError as error:
        raise UserError(str(error)) from None


def write_pictures(folder: Path, prompt: int, pictures_NHW3: Pictures) -> list[str]:
    """Write one prompt's pictures as PNGs; returns their names relative to the folder."""
    names = [f"{prompt:05}/{number:04}.png" for number in range(len(pictures_NHW3))]
    (folder / f"{prompt:05}").mkdir()
    for name, picture in zip(names, pictures_NHW3, strict=True):
        Image.fromarray(picture).save(folder / name)
    return names


def contact_sheet(pictures_PNHW3: Pictures) -> Image.Image:
    """One picture of all, a row for each prompt, enlarged without smoothing."""
    padded = np.pad(pictures_PNHW3, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    prompts, pictures, height, width, _ = padded.shape
    sheet = Image.fromarray(padded.transpose(0, 2, 1, 3, 4).reshape(prompts * height, pictures * width, 3))
    return sheet.resize((sheet.width * SHEET_SCALE, sheet.height * SHEET_SCALE), Image.Resampling.NEAREST)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: 0 done, 2 bad input."""
    options = arguments().parse_args(argv)
    with bad_input_exits("generate"):
        generate(options)


if __name__ == "__main__":
    main()

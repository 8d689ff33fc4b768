"""Exports a model of any depth to diffusers: a folder that `SanaPipeline.from_pretrained` reads, with a model card.

    python -m tasks.export --model finetuned-6 --out sana-6-blocks

The model is a name (small, grown, pruned-6, finetuned-6, sft-grown), a folder, or an alias of the registry.
Autoencoder, text encoder and params are taken from its experiment. diffusers' solver and ours make the same steps. So
both draw the same picture from the same noise, if `network.numerics` is diffusers.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.network import parameter_count
from model.text_encoder import Reading, instruction_text
from model.weights.diffusers_pipeline import export_pipeline
from tasks.evaluation.picture_drawing import Painter
from tasks.evaluation.scorer_labels import SCORER_MEANINGS
from tasks.generate import open_painter
from tasks.params.experiment_params import Params
from tasks.reporting.score_names import full_name
from tasks.runtime.command_line import bad_input_exits, command_parser
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json, write_bytes
from tasks.system.manifest import MANIFEST, sha256_file, write_manifest
from tasks.tracking.model_registry import params_of, resolve_model

CARD = "README.md"
NOTICE = (
    "Weights derived from NVIDIA's released SANA-1.5 weights are under the NSCL v2-custom licence, and a text encoder "
    "of the Gemma family under the Gemma terms of use, whatever the licence of the code that exported them. Weights "
    "that were trained from scratch, with encoders trained from scratch, are under neither."
)


def arguments() -> ArgumentParser:
    """The parser of the command line."""
    options = command_parser("export", __doc__)
    options.add_argument("--model", default="grown", help="name, folder or registry alias (default: grown)")
    options.add_argument("--out", type=Path, required=True, help="a new folder for the pipeline")
    return options


def export(options: Namespace) -> None:
    """Write the pipeline, its card and its manifest. Raises UserError for options that do not fit."""
    if options.out.exists():
        raise UserError(f"--out {options.out} exists: name a new folder")
    model = resolve_model(options.model)
    params = params_of(model)
    painter = open_painter(model, params)
    options.out.mkdir(parents=True)
    export_pipeline(
        painter.network,
        painter.autoencoder,
        painter.text_encoder,
        options.out,
        sampler=params.sampling.sampler,
        flow_shift=params.diffusion.flow_shift,
        sample_size=painter.latent_shape[1],
    )
    write_bytes(options.out / CARD, card(model, painter, params).encode())
    write_manifest(options.out)
    print(f"{options.model} is in {options.out}: SanaPipeline.from_pretrained('{options.out}') reads it", flush=True)


def card(model: Path, painter: Painter, params: Params) -> str:
    """The model card: how to draw with the model, its lineage, its scores, and the terms that bind its weights."""
    config, reading, sampling = painter.network.config, painter.text_encoder.reading, params.sampling
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "---",
        f"# {model.name}",
        "",
        f"SANA-1.5 of {config.depth} blocks, {parameter_count(painter.network) / 1e6:.1f} M parameters, numerics of "
        f"{config.numerics}.",
        "",
        "```python",
        "from diffusers import SanaPipeline",
        "",
        'pipeline = SanaPipeline.from_pretrained("this folder")',
        f"size = {params.shard.image_size}",
        f"instruction = {instruction_lines(reading)}",
        f'pipeline("a prompt", height=size, width=size, num_inference_steps={sampling.steps},',
        f"         guidance_scale={sampling.guidance}, max_sequence_length={reading.max_tokens},",
        "         complex_human_instruction=instruction, use_resolution_binning=False).images[0]",
        "```",
        "",
        "## Lineage",
        "",
        *lineage(model),
        "",
        "## Scores",
        "",
        *heldout_loss(model),
        *scores(model),
        "",
        "## Terms",
        "",
        NOTICE,
    ]
    return "\n".join(lines) + "\n"


def instruction_lines(reading: Reading) -> str:
    """The Python expression of the instruction's lines, which the pipeline does not keep; None if there are none.

    The default of diffusers is quoted in another way than the instruction of the published code.
    """
    text = instruction_text(reading.instruction, reading.numerics)
    return json.dumps(text.split("\n"), indent=4) if text else "None"


def lineage(model: Path) -> list[str]:
    """What is known of the model's origin, a line for each fact, from the folder and the folders beside it."""
    lines = [f"* checkpoint: manifest sha256 `{sha256_file(model / MANIFEST)}`"] if (model / MANIFEST).exists() else []
    for name in (paths.AUTOENCODER.name, paths.TEXT_ENCODER.name):
        if (manifest := model.parent / name / MANIFEST).exists():
            lines.append(f"* {name}: manifest sha256 `{sha256_file(manifest)}`")
    base = model.name.removeprefix("sft-")
    if base != model.name:
        lines.append(f"* `{base}`, fine-tuned on the data set `{params_of(model).sft.data}`")
    kind, _, depth = base.partition("-")
    if kind == "scratch":
        return [*lines, f"* {depth} blocks trained from random weights"]
    pruning = model.parent / f"pruned-{depth}" / "pruning.json"
    if depth and pruning.exists():
        kept = ", ".join(map(str, read_json(pruning)["kept"]))
        lines.append(f"* cut from `grown` by block importance, blocks {kept} kept{_tuned(kind)}")
    growth = model.parent / paths.GROWN_INIT.name / "growth.json"
    if kind != "small" and growth.exists() and has_grown(model.parent):
        chosen = read_json(growth)["chosen"]
        lines.append(f"* grown by {chosen['strategy'].replace('_', ' ')}, {chosen['drop']} last blocks dropped")
    start = model.parent / paths.SMALL.name / paths.START.name
    if start.exists():
        facts = read_json(start)
        norm = ", QK norm added" if facts["qk_norm_added"] else ""
        lines.append(f"* started from the weights `{facts['path']}`, sha256 of their files `{facts['sha256']}`{norm}")
    return lines or ["* not known: the folder has no manifest"]


def has_grown(outputs: Path) -> bool:
    """Whether an experiment's grown model has new blocks, and is not the small model passed on."""
    small, grown = (outputs / folder.name / "config.json" for folder in (paths.SMALL, paths.GROWN))
    return read_json(grown)["depth"] != read_json(small)["depth"]


def _tuned(kind: str) -> str:
    return ", then fine-tuned" if kind == "finetuned" else ""


def scores(model: Path) -> list[str]:
    """The scores with 95 % intervals as a table, headed by the scorer's name and meaning, or a line that there is none.

    Whoever meets the card alone must not take the score of another scorer for GenEval's.
    """
    path = model.parent / paths.EVALUATION.name / model.name / "summary.json"
    if not path.exists():
        return ["Not evaluated."]
    summary = read_json(path)
    about = model.parent / paths.SCORER.name / "summary.json"
    scorer = read_json(about) if about.exists() else {}
    name, meaning = full_name(summary["scorer"], scorer.get("detector")), SCORER_MEANINGS[summary["scorer"]]
    tasks = summary["score"]["tasks"]
    rows = [("overall", summary["score"]), *(tasks.items() if len(tasks) > 1 else ())]  # one task is the whole score
    table = [f"| {name.replace('_', ' ')} | {_interval(score)} |" for name, score in rows]
    head = f"{summary['prompts']} prompts, {summary['pictures_per_prompt']} pictures each, 95 % intervals over prompts."
    notes = [note, ""] if (note := scorer.get("note")) else []
    return [
        f"### {name}",
        "",
        f"The score is the {meaning}.",
        "",
        *notes,
        head,
        "",
        "| task | score |",
        "|---|---|",
        *table,
    ]


def heldout_loss(model: Path) -> list[str]:
    """A line with the model's held-out loss and its 95 % interval, where they were measured."""
    path = model / "metrics.json"
    metrics = read_json(path) if path.exists() else {}
    if "heldout_loss" not in metrics:
        return []
    ends = [metrics.get(f"heldout_loss_{end}") for end in ("low", "high")]
    interval = "" if None in ends else f" [{ends[0]:.4f}, {ends[1]:.4f}], a 95 % interval over samples"
    return [f"Flow-matching loss on held-out pictures: {metrics['heldout_loss']:.4f}{interval}.", ""]


def _interval(score: dict[str, Any]) -> str:
    value = score["overall"] if "overall" in score else score["value"]
    return f"{value:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. The exit status is 0 if all is done, and 2 for bad input."""
    options = arguments().parse_args(argv)
    with bad_input_exits("export"):
        export(options)


if __name__ == "__main__":
    main()

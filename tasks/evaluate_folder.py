"""Measures a folder of pictures, of any model, by the metrics of SANA's tables: FID, CLIP score, DPG-Bench.

    python -m tasks.evaluate_folder --pictures drawn --prompts MJHQ-30K/meta_data.json --real MJHQ-30K/images \\
        --inception checkpoints/inception-2015-12-05.pt --clip checkpoints/clip-vit-large-patch14 --out mjhq.json
    python -m tasks.evaluate_folder --pictures drawn --questions dpg_bench.csv --judge checkpoints/model \\
        --grid 4 --out dpg.json

With --prompts the pictures are those of MJHQ-30K's ids, at <category>/<id>.png or <id>.png (or .jpg, .webp); without it
all pictures below the folder are taken. With --questions they are those of DPG-Bench's prompts: <item_id>.png, which
has four pictures two by two where --grid is 4, or a folder <item_id>/ of pictures.

It writes --out with each number, its 95 % interval and what must be said beside it, and beside it a CSV of the pictures
(--out with the ending .pictures.csv) or of the answers (.answers.csv). Nothing is downloaded: all models are files
that you name. docs/metrics.md says how each number is made.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.dpg_bench import (
    Ask,
    QuestionedPrompt,
    answer_prompts,
    answer_rows,
    cut_grid,
    read_questions,
    summarize_answers,
)
from tasks.evaluation.feature_distance import LEAST_PICTURES, mean_interval
from tasks.evaluation.frechet_distance import frechet_distance
from tasks.evaluation.inception_features import InceptionFeatures
from tasks.evaluation.listed_pictures import (
    SUFFIXES,
    ListedPicture,
    cover_square,
    pictures_below,
    read_listing,
    read_rgb,
    reference_pictures,
)
from tasks.evaluation.picture_features import VisionFeatures
from tasks.runtime.command_line import bad_input_exits, command_parser
from tasks.runtime.torch_setup import choose_device
from tasks.system.errors import UserError
from tasks.system.files import write_csv, write_json
from tasks.system.progress import progress

Row = dict[str, Any]
Networks = Mapping[str, InceptionFeatures | VisionFeatures]
BATCH = 32
"""Pictures in memory at a time."""


def compare_folder(chosen: argparse.Namespace, device: str) -> Row:
    """The Frechet distances and the CLIP score of a folder; writes the CSV of its pictures."""
    listed = read_listing(chosen.prompts, chosen.pictures) if chosen.prompts else None
    drawn = [picture.path for picture in listed] if listed else pictures_below(chosen.pictures)
    networks, clip = open_networks(chosen, device), open_clip(chosen.clip, device) if chosen.clip else None
    real = reference_pictures(chosen.prompts, chosen.real) if networks else []
    if networks and min(len(real), len(drawn)) < LEAST_PICTURES:
        raise UserError(f"{len(drawn)} drawn and {len(real)} real pictures: a distance needs {LEAST_PICTURES} of each")
    features, scores_B = read_pictures("drawn pictures", drawn, networks, chosen.size, clip, listed)
    references, _ = read_pictures("real pictures", real, networks, chosen.size)
    found: Row = {"pictures": len(drawn), "prompts": len(listed) if listed else None}
    if networks:
        found |= {"real_pictures": len(real), "size": chosen.size, "frechet": {}}
    for name, network in networks.items():
        print(f"distance by {network.name}", flush=True)
        measured = frechet_distance(references[name], features[name], device)
        found["frechet"][name] = {"network": network.name} | asdict(measured) | {"note": measured.note}
    if clip and listed:
        found["clip_score"] = {"network": clip.name} | summarize_scores(listed, scores_B)
    if listed:
        rows = [{"id": each.name, "category": each.category, "file": str(each.path)} for each in listed]
        if clip:
            rows = [row | {"clip_score": f"{value:.6f}"} for row, value in zip(rows, scores_B, strict=True)]
        write_csv(chosen.out.with_suffix(".pictures.csv"), list(rows[0]), rows)
    return found


def open_networks(chosen: argparse.Namespace, device: str) -> Networks:
    """The networks of the distances, by the name of their number. FID is the published Inception's alone."""
    found: dict[str, InceptionFeatures | VisionFeatures] = {}
    if chosen.inception:
        inception = InceptionFeatures(chosen.inception, device)
        found["fid" if inception.published else "inception_file"] = inception
    if chosen.vision:
        found["vision_model"] = VisionFeatures(chosen.vision, device, "--vision")
    return found


def open_clip(folder: Path, device: str) -> VisionFeatures:
    """The CLIP of the CLIP score. Raises UserError if the model in the folder reads no text."""
    clip = VisionFeatures(folder, device, "--clip")
    if clip.tokenizer is None:
        raise UserError(f"--clip: {folder} holds a {clip.kind!r} model, which reads no text: name a folder with a CLIP")
    return clip


def read_pictures(
    label: str,
    files: Sequence[Path],
    networks: Networks,
    size: int,
    clip: VisionFeatures | None = None,
    listed: Sequence[ListedPicture] | None = None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float64]]:
    """Each network's features (B, D) of the files, cut to `size`, and the CLIP scores (B,) of the whole pictures."""
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in networks}
    scores: list[NDArray[np.float64]] = []
    with progress(label, len(files)) as meter:
        for start in range(0, len(files), BATCH):
            pictures = [read_rgb(file) for file in files[start : start + BATCH]]
            cut = [cover_square(picture, size) for picture in pictures]
            for name, network in networks.items():
                parts[name].append(network.read(cut))
            if clip and listed:
                captions = [each.prompt for each in listed[start : start + BATCH]]
                found = clip.clip_scores(clip.read(pictures), captions)
                assert found is not None  # open_clip has seen that it reads text
                scores.append(found)
            meter.advance(len(pictures))
    return {name: np.concatenate(part) for name, part in parts.items() if part}, np.concatenate([[], *scores])


def summarize_scores(listed: Sequence[ListedPicture], scores_B: NDArray[np.float64]) -> Row:
    """The mean CLIP score of all pictures and of each category, with 95 % intervals by the normal distribution."""
    categories = np.array([each.category for each in listed])
    by_category = {name: asdict(mean_interval(scores_B[categories == name])) for name in dict.fromkeys(categories)}
    return asdict(mean_interval(scores_B)) | {"categories": {str(name): part for name, part in by_category.items()}}


def question_folder(chosen: argparse.Namespace, device: str) -> Row:
    """DPG-Bench's score of a folder; writes the CSV of the answers. Answers are kept, and asked for once."""
    prompts = read_questions(chosen.questions)
    files = files_of_prompts(prompts, chosen.pictures)
    ask = open_judge(chosen, device)
    log_yes = answer_prompts(prompts, lambda place: list(shown(files[place], chosen.grid)), ask)
    rows = list(answer_rows(prompts, log_yes))
    write_csv(chosen.out.with_suffix(".answers.csv"), list(rows[0]), rows)
    summary = summarize_answers(prompts, log_yes, chosen.bootstrap_samples, chosen.seed)
    return {"judge": chosen.judge.name, "grid": chosen.grid, "dpg_bench": summary}


def open_judge(chosen: argparse.Namespace, device: str) -> Ask:
    """The vision-language model that answers the questions. transformers takes seconds to import."""
    from tasks.evaluation.judges.judge_answers import ScoreCache
    from tasks.evaluation.judges.vision_language_judge import load_vision_language_judge

    return load_vision_language_judge(
        chosen.judge,
        cache=ScoreCache(chosen.out.with_suffix(".answers.sqlite")),
        remote_code=chosen.remote_code,
        batch_size=chosen.batch_size,
        time_limit=float("inf"),
        dtype="bfloat16" if device == "cuda" else "float32",
        device=device,
    ).log_yes_to


def files_of_prompts(prompts: Sequence[QuestionedPrompt], folder: Path) -> list[list[Path]]:
    """The files of each prompt's pictures. Raises UserError naming the first prompt that has none."""
    found = []
    for prompt in prompts:
        alone = [path for suffix in SUFFIXES if (path := folder / f"{prompt.name}{suffix}").is_file()]
        inside = folder / prompt.name
        found.append(alone[:1] or (pictures_below(inside) if inside.is_dir() else []))
    if missing := [prompt.name for prompt, files in zip(prompts, found, strict=True) if not files]:
        raise UserError(
            f"{folder} lacks the pictures of {len(missing)} of {len(prompts)} prompts, {missing[0]} first: "
            "put each at <item_id>.png or in a folder <item_id>/"
        )
    return found


def shown(files: Sequence[Path], grid: int) -> Iterator[Pictures]:
    """The pictures of a prompt's files. Raises UserError naming a file that cannot be cut."""
    for file in files:
        try:
            yield from cut_grid(read_rgb(file), grid)
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None


def print_summary(summary: Row) -> None:
    """The numbers as a table for people, each with what must be said beside it."""
    rows = [(name, part) for name, part in summary.get("frechet", {}).items()]
    if clip := summary.get("clip_score"):
        rows += [("clip_score", clip), *((f"  {name}", part) for name, part in clip["categories"].items())]
    if dpg := summary.get("dpg_bench"):
        rows += [("dpg_bench", dpg), *((f"  {name}", part) for name, part in dpg["categories"].items())]
    for name, part in rows:
        print(f"{name:<16} {part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]")
    for part in (*summary.get("frechet", {}).values(), summary.get("dpg_bench", {})):
        if "note" in part:
            print(part["note"])


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    arguments = command_parser("evaluate_folder", __doc__)
    arguments.add_argument("--pictures", type=Path, required=True, help="the folder of drawn pictures")
    arguments.add_argument("--out", type=Path, required=True, help="JSON file for the numbers")
    arguments.add_argument("--prompts", type=Path, help="MJHQ-30K's meta_data.json, or one like it")
    arguments.add_argument("--real", type=Path, help="folder of real pictures that the distances are to")
    arguments.add_argument("--inception", type=Path, help="TorchScript file of Inception, for the FID")
    arguments.add_argument("--vision", type=Path, help="folder of a transformers CLIP, DINO or ViT, for a distance")
    arguments.add_argument("--clip", type=Path, help="folder of a transformers CLIP, for the CLIP score")
    arguments.add_argument(
        "--size", type=int, default=256, help="pixels that distances cut pictures to, or 0 (default: 256, as SANA's)"
    )
    arguments.add_argument("--questions", type=Path, help="DPG-Bench's dpg_bench.csv, or one like it")
    arguments.add_argument("--judge", type=Path, help="folder of a transformers model for pictures and text")
    arguments.add_argument("--remote-code", action="store_true", help="run Python code that --judge's folder brings")
    arguments.add_argument("--grid", type=int, choices=(1, 4), default=1, help="pictures in each file (default: 1)")
    arguments.add_argument("--batch-size", type=int, default=8, help="questions asked at a time (default: 8)")
    arguments.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)"
    )
    arguments.add_argument("--bootstrap-samples", type=int, default=2000, help="resamples (default: 2000)")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    return arguments.parse_args(argv)


def check_arguments(chosen: argparse.Namespace) -> None:
    """Raises UserError for options that do not fit each other."""
    distances = chosen.inception or chosen.vision
    measures = {"--inception": chosen.inception, "--vision": chosen.vision, "--clip": chosen.clip}
    if chosen.size < 0 or min(chosen.batch_size, chosen.bootstrap_samples) < 1:
        raise UserError("--size must be 0 or above, --batch-size and --bootstrap-samples 1 or above")
    if bool(chosen.questions) != bool(chosen.judge):
        raise UserError("--questions and --judge belong together: give both or neither")
    if chosen.questions and (named := [name for name, value in measures.items() if value]):
        raise UserError(f"{named[0]} measures another folder than --questions does: run the command for each")
    if not chosen.questions and not any(measures.values()):
        raise UserError("nothing to measure: give --inception or --vision, --clip, or --questions with --judge")
    if bool(distances) != bool(chosen.real):
        raise UserError("--real and a network (--inception or --vision) belong together: give both or neither")
    if chosen.clip and not chosen.prompts:
        raise UserError(
            "--clip compares pictures with their prompts: give --prompts, such as MJHQ-30K's meta_data.json"
        )


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point. The exit status is 0 if all is done, and 2 for bad input."""
    chosen = read_arguments(argv)
    with bad_input_exits("evaluate_folder"):
        check_arguments(chosen)
        device = choose_device(chosen.device, "--device")
        measure = question_folder if chosen.questions else compare_folder
        summary = measure(chosen, device)
        write_json(chosen.out, summary)
    print_summary(summary)


if __name__ == "__main__":
    run()

"""Scores a folder of pictures in GenEval's layout, of any model, by GenEval's rules.

    python -m tasks.score_folder --pictures pictures --detector mask2former \\
        --mask2former checkpoints/mask2former-swin-small-coco-instance \\
        --clip checkpoints/clip-vit-large-patch14 --out results.jsonl

It writes GenEval's lines of results to --out, which GenEval's own summary reads too. Beside them it writes
results.summary.json: the score of each task and overall, and the share of pictures in which each atom holds (object,
count, colour, relation), with 95 % bootstrap intervals over prompts. results.atoms.csv has the atoms of each prompt.
Pictures may differ in size, and prompts in their number of pictures. A run that was stopped goes on where it was, and a
repeated run scores only pictures that are new or changed: verdicts are kept in results.jsonl.verdicts, by the digests
of picture, prompt line and detector.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import Line
from tasks.evaluation.detectors.detector import NOTES, Detector
from tasks.evaluation.detectors.detector_choice import check_classes, load_detector
from tasks.evaluation.evaluation_summary import as_record
from tasks.evaluation.geneval_atoms import summarize_atoms, write_atoms
from tasks.evaluation.geneval_folder import Picture, list_prompts, read_picture, result, write_results
from tasks.evaluation.picture_scoring import score_batch
from tasks.evaluation.score_statistics import score
from tasks.evaluation.verdict_store import VerdictStore
from tasks.params.user_files import listing_digest
from tasks.runtime.command_line import bad_input_exits, command_parser
from tasks.runtime.torch_setup import choose_device
from tasks.system.errors import UserError
from tasks.system.files import write_json
from tasks.system.manifest import sha256_file, sha256_json
from tasks.system.progress import progress

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A picture to score: its name in the folder, the number and line of its prompt, and the key of its verdict."""

    name: str
    prompt: int
    line: Line
    key: str


def score_folder(pictures: Path, detector: Detector, identity: Row, store: VerdictStore, batch_size: int) -> list[Job]:
    """Score every picture of which the store has no verdict. Returns all pictures, in the order of the prompts."""
    jobs = list_jobs(pictures, detector, identity)
    todo = [job for job in jobs if job.key not in store]
    with progress("scoring", len(jobs), len(jobs) - len(todo)) as meter:
        for batch in batches(pictures, todo, batch_size):
            shown = np.stack([picture for _, picture in batch])
            verdicts = score_batch([job.line for job, _ in batch], shown, detector)
            rows = (result(job.name, job.line, verdict) for (job, _), verdict in zip(batch, verdicts, strict=True))
            store.add({job.key: row for (job, _), row in zip(batch, rows, strict=True)})
            meter.advance(len(batch))
    return jobs


def list_jobs(pictures: Path, detector: Detector, identity: Row) -> list[Job]:
    """Every picture of the folder. Raises UserError if it is broken, or asks for a class unknown to `detector`."""
    prompts = list(list_prompts(pictures))
    check_classes((prompt.line for prompt in prompts), detector)
    jobs = []
    for number, prompt in enumerate(prompts):
        for name in prompt.names:
            facts = {"picture": sha256_file(pictures / name), "line": prompt.line, "detector": identity}
            jobs.append(Job(name, number, prompt.line, sha256_json(facts)))
    return jobs


def batches(pictures: Path, jobs: Iterable[Job], size: int) -> Iterator[list[tuple[Job, Picture]]]:
    """The jobs with their pictures, in order, in batches of up to `size` pictures of one size."""
    batch: list[tuple[Job, Picture]] = []
    for job in jobs:
        picture = read_picture(pictures / job.name)
        if batch and (len(batch) == size or picture.shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append((job, picture))
    if batch:
        yield batch


def summarize_folder(jobs: Sequence[Job], rows: Sequence[Row], detector: Detector, samples: int, seed: int) -> Row:
    """The summary of a folder: GenEval score and atoms with intervals, and the shares of right pictures and prompts.

    A prompt counts as right if at least one of its pictures is.
    """
    tags = {job.prompt: job.line["tag"] for job in jobs}
    verdicts: dict[int, list[bool]] = {prompt: [] for prompt in tags}
    for job, row in zip(jobs, rows, strict=True):
        verdicts[job.prompt].append(row["correct"])
    correct_PN = np.full((len(tags), max(map(len, verdicts.values()))), np.nan)
    for place, values in enumerate(verdicts.values()):
        correct_PN[place, : len(values)] = values
    scored = score(correct_PN, list(tags.values()), samples, numpy_generator(seed, "geneval bootstrap"))
    return {
        "detector": detector.name,
        "detector_note": detector.note,
        "pictures": len(rows),
        "prompts": len(tags),
        "correct_pictures": float(np.nanmean(correct_PN)),
        "correct_prompts": float(np.nanmax(correct_PN, axis=1).mean()),
        "geneval": as_record(scored),
        "atoms": summarize_atoms(*lines_and_reasons(jobs, rows), samples, seed),
    }


def lines_and_reasons(jobs: Sequence[Job], rows: Sequence[Row]) -> tuple[list[Line], list[list[str]]]:
    """Each prompt's line, and the reasons of its pictures' verdicts."""
    lines = {job.prompt: job.line for job in jobs}
    reasons: dict[int, list[str]] = {prompt: [] for prompt in lines}
    for job, row in zip(jobs, rows, strict=True):
        reasons[job.prompt].append(row["reason"])
    return list(lines.values()), list(reasons.values())


def identify(detector: Detector, folders: Iterable[Path]) -> Row:
    """What a verdict depends on besides picture and line. Models are known by their files' names, sizes and times."""
    digests = [listing_digest(folder) for folder in folders]
    return {"name": detector.name, "thresholds": asdict(detector.thresholds), "models": digests}


def print_summary(summary: Row) -> None:
    """The scores as a table for people."""
    geneval = summary["geneval"]
    rows = [(task, part["value"], part["low"], part["high"]) for task, part in geneval["tasks"].items()]
    for name, value, low, high in (*rows, ("overall", geneval["overall"], geneval["low"], geneval["high"])):
        print(f"{name:<16} {value:.4f} [{low:.4f}, {high:.4f}]")
    for atom, part in summary["atoms"].items():
        share = f"{part['value']:.4f} [{part['low']:.4f}, {part['high']:.4f}]" if "value" in part else "not reached"
        print(f"{atom:<16} {share} of {part['looked_at']} pictures where the rules came to it")
    print(f"of {summary['pictures']} pictures {summary['correct_pictures']:.2%} are right, ", end="")
    print(f"of {summary['prompts']} prompts {summary['correct_prompts']:.2%} have a right one")
    if summary["detector_note"]:
        print(summary["detector_note"])


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    arguments = command_parser("score_folder", __doc__)
    arguments.add_argument("--pictures", type=Path, required=True, help="the folder, in GenEval's layout")
    arguments.add_argument("--out", type=Path, required=True, help="file for the lines of results")
    arguments.add_argument("--detector", choices=list(NOTES), required=True, help="what finds objects and colours")
    arguments.add_argument("--mask2former", type=Path, help="folder of a transformers Mask2Former (COCO instances)")
    arguments.add_argument("--clip", type=Path, help="folder of a transformers CLIP")
    arguments.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)"
    )
    arguments.add_argument("--batch-size", type=int, default=8, help="pictures searched at a time (default: 8)")
    arguments.add_argument("--bootstrap-samples", type=int, default=2000, help="resamples (default: 2000)")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    return arguments.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point. The exit status is 0 if all is done, and 2 for bad input."""
    chosen = read_arguments(argv)
    with bad_input_exits("score_folder"):
        if min(chosen.batch_size, chosen.bootstrap_samples) < 1:
            raise UserError("--batch-size and --bootstrap-samples must be 1 or above")
        detector = load_detector(
            chosen.detector, chosen.mask2former, chosen.clip, choose_device(chosen.device, "--device")
        )
        folders = [folder for folder in (chosen.mask2former, chosen.clip) if detector.name != "scenes" and folder]
        with VerdictStore(chosen.out.with_name(f"{chosen.out.name}.verdicts")) as store:
            jobs = score_folder(chosen.pictures, detector, identify(detector, folders), store, chosen.batch_size)
            rows = [store[job.key] | {"filename": job.name} for job in jobs]
        write_results(chosen.out, rows)
        write_atoms(chosen.out.with_suffix(".atoms.csv"), *lines_and_reasons(jobs, rows))
        summary = summarize_folder(jobs, rows, detector, chosen.bootstrap_samples, chosen.seed)
        write_json(chosen.out.with_suffix(".summary.json"), summary)
    print_summary(summary)


if __name__ == "__main__":
    run()

"""GenEval's layout of a folder of pictures, and its file of results.

    00000/metadata.jsonl         the prompt's line, alone in its file
    00000/samples/0000.png       its pictures
    results.jsonl                one line for each picture: filename, tag, prompt, correct, reason, metadata, details

GenEval's own tools can score a folder written here, and a folder written for GenEval can be read here. The same
pictures give the same bytes.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tasks.data.scene_vocabulary import Line
from tasks.evaluation.geneval_rules import Verdict
from tasks.evaluation.prompts.prompt_lines import parse_line
from tasks.system.errors import UserError
from tasks.system.files import write_bytes

Picture = NDArray[np.uint8]
PICTURE_NAME = re.compile(r"\d+\.png")


@dataclass(frozen=True)
class PromptFiles:
    """One prompt's line, and the paths of its pictures relative to the whole folder."""

    line: Line
    names: tuple[str, ...]


@dataclass(frozen=True)
class PromptFolder:
    """One prompt's line and pictures, and the paths of the pictures relative to the whole folder."""

    line: Line
    names: tuple[str, ...]
    pictures: tuple[Picture, ...]


def picture_name(prompt: int, number: int) -> str:
    """The path, in the folder, of picture `number` of prompt `prompt`."""
    return f"{prompt:05}/samples/{number:04}.png"


def write_prompt(folder: Path, prompt: int, line: Line, pictures: Sequence[Picture]) -> None:
    """Write one prompt's pictures, each (H, W, 3), and its line."""
    path = folder / f"{prompt:05}"
    (path / "samples").mkdir(parents=True)
    (path / "metadata.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    for number, picture in enumerate(pictures):
        (folder / picture_name(prompt, number)).write_bytes(_png(picture))


def read_prompts(folder: Path) -> Iterator[PromptFolder]:
    """The prompts of a folder, by number. Raises UserError naming a file that is missing or broken."""
    for prompt in list_prompts(folder):
        pictures = tuple(read_picture(folder / name) for name in prompt.names)
        yield PromptFolder(prompt.line, prompt.names, pictures)


def list_prompts(folder: Path) -> Iterator[PromptFiles]:
    """The prompts of a folder, as `read_prompts`, but without opening the pictures."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one in GenEval's layout")
    found = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    if not found:
        raise UserError(f"{folder} has no numbered prompt folders: give a folder in GenEval's layout")
    for path in found:
        line = read_line(path / "metadata.jsonl")
        samples = path / "samples"
        files = [file for file in samples.glob("*.png") if PICTURE_NAME.fullmatch(file.name)]
        files.sort(key=lambda file: int(file.stem))
        if not files:
            raise UserError(f"{samples} has no pictures named by numbers (0000.png): put the prompt's samples there")
        names = tuple(file.relative_to(folder).as_posix() for file in files)
        yield PromptFiles(line, names)


def read_line(path: Path) -> Line:
    """The prompt line in a metadata file. Raises UserError naming the file if it does not follow GenEval's schema."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): it must hold one GenEval prompt line") from None
    return parse_line(text, str(path))


def result(name: str, line: Line, verdict: Verdict) -> dict[str, Any]:
    """One picture's line of results. `details` holds the boxes that counted, by class, as [x0, y0, x1, y1, score]."""
    boxes = {shape: [[*found.box, found.score] for found in kept] for shape, kept in verdict.kept.items()}
    return {
        "filename": name,
        "tag": line["tag"],
        "prompt": line["prompt"],
        "correct": verdict.correct,
        "reason": verdict.reason,
        "metadata": json.dumps(line),
        "details": json.dumps(boxes),
    }


def write_results(path: Path, results: Iterable[dict[str, Any]]) -> None:
    """Write one line of JSON for each result."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in results).encode())


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file. Raises UserError naming the file, or the line, that is broken."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the stage that writes it") from None
    rows = []
    for number, row in enumerate(text.splitlines(), start=1):
        try:
            rows.append(json.loads(row))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not valid JSON ({error}): run its stage again") from None
    return rows


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def read_picture(path: Path) -> Picture:
    """The pixels (H, W, 3) of a PNG, turned as its EXIF says. Raises UserError naming the file if it is broken."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode.startswith("I"):
                raise ValueError("more than 8 bits for each grey pixel, which would be read as white")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a PNG ({error}): make the picture again") from None

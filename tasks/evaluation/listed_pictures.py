"""Folders of pictures outside the pipeline: MJHQ-30K's listing of prompts, and the pictures drawn for them.

MJHQ-30K's `meta_data.json` maps the id of each picture to its `category` and `prompt`. Its pictures lie in
`<category>/<id>.jpg`. Drawn pictures may lie so too, or as `<id>.png` beside each other, as SANA's scripts write them.
"""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tasks.data.picture_files import FORMATS, pixel_limit, to_rgb
from tasks.data.sources.picture_candidate import Reject
from tasks.data.sources.picture_folder import files_below
from tasks.evaluation.detectors.detector import Pictures
from tasks.system.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_PIXELS = 100_000_000
"""A picture of more is refused before it is decoded."""


@dataclass(frozen=True)
class ListedPicture:
    """A picture with the id, the category and the prompt that it was drawn for."""

    name: str
    category: str
    prompt: str
    path: Path


def read_listing(listing: Path, folder: Path) -> list[ListedPicture]:
    """The pictures in `folder` of the ids in an MJHQ `meta_data.json`, in its order.

    Raises UserError naming the listing if it is broken, or the first id that has no picture.
    """
    rows = _read_rows(listing)
    found = {name: _picture_of(folder, name, category) for name, category, _ in rows}
    if missing := [name for name, path in found.items() if path is None]:
        raise UserError(
            f"{folder} lacks the pictures of {len(missing)} of {len(rows)} ids of {listing}, {missing[0]} first: "
            "put each at <category>/<id>.png or <id>.png"
        )
    return [ListedPicture(name, category, prompt, found[name]) for name, category, prompt in rows if found[name]]


def _read_rows(listing: Path) -> list[tuple[str, str, str]]:
    """Id, category and prompt of each entry of a listing. Raises UserError naming the listing if it is broken."""
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))
        rows = [(name, entry["category"], entry["prompt"]) for name, entry in entries.items()]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{listing} cannot be read ({type(error).__name__}: {error}): it must map each id to its category and "
            "prompt, as MJHQ-30K's meta_data.json does"
        ) from None
    if not rows or not all(isinstance(text, str) for row in rows for text in row):
        raise UserError(f"{listing} must map each id to its category and prompt, which are text")
    return rows


def _picture_of(folder: Path, name: str, category: str) -> Path | None:
    """The file of an id's picture. Ids and categories that lead out of the folder have none."""
    for place in (folder / category / name, folder / name):
        try:
            inside = place.resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError):  # no file can have such a name: it is too long, or has a NUL or half a character
            continue
        if not inside or not place.name:
            continue
        for suffix in SUFFIXES:
            path = place.with_name(place.name + suffix)  # an id may have a dot, which is no suffix
            if os.path.isfile(path):  # False too for a name that is too long
                return path
    return None


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in and below a folder by their suffix, in the order of their paths. Raises UserError for none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one that holds pictures")
    found = sorted(path for entry in files_below(folder) if (path := Path(entry.path)).suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return found


def read_rgb(path: Path) -> Pictures:
    """The pixels (H, W, 3) of a picture file, turned upright. Raises UserError naming the file if it is broken."""
    try:
        with pixel_limit(MOST_PIXELS), Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except (
        OSError,
        ValueError,
        SyntaxError,
        Reject,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): make it again") from None


def cover_square(picture_HW3: Pictures, side: int) -> Pictures:
    """A picture as (side, side, 3): its shorter edge is resized to `side`, bilinearly, and its centre is cut out.

    These are torchvision's Resize and CenterCrop, which SANA's evaluation applies to pictures before their FID. A side
    of 0 leaves a picture as it is.
    """
    height, width = picture_HW3.shape[:2]
    if side == 0 or (height, width) == (side, side):
        return picture_HW3
    wide, high = (side, side * height // width) if width <= height else (side * width // height, side)
    resized = Image.fromarray(picture_HW3).resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def reference_pictures(listing: Path | None, folder: Path) -> list[Path]:
    """The real pictures that drawn ones are compared with: those of the listing's ids, or all below `folder`.

    All are taken if there is no listing, or if the folder has no picture of its first id. Raises UserError if there
    are none, or if the folder has pictures of some ids and not of others.
    """
    every = pictures_below(folder)
    if listing is None:
        return every
    names = {path.stem for path in every} | {path.name.rpartition(".")[0] for path in every}
    first = _read_rows(listing)[0][0]
    return [picture.path for picture in read_listing(listing, folder)] if first in names else every

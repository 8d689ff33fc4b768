"""Small pictures of samples: thumbnails, and strips in which the judge's choice and the right pictures are marked.

Shapes: N pictures of one prompt, (N, H, W, 3) uint8.
"""

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from tasks.computing.seeds import numpy_generator
from tasks.data.picture_files import decode_png, encode_png
from tasks.evaluation.best_of_n import select
from tasks.evaluation.picture_pool import Pool
from tasks.evaluation.prompts.evaluation_prompts import Prompt, take_turns
from tasks.reporting.figure_style import CHOSEN, QUIET, RIGHT

Pixels = NDArray[np.uint8]
SIDE = 64
"""The most pixels of a thumbnail's longer side; it has more than half of them."""

FRAME, BAR, GAP = 4, 5, 4  # pixels


def choose_prompts(prompts: list[Prompt], count: int, seed: int) -> list[int]:
    """The positions of up to `count` prompts to show, drawn by the seed, not by their pictures. Tasks take turns."""
    order = numpy_generator(seed, "report prompts").permutation(len(prompts))
    queues: dict[str, list[int]] = {prompt.tag: [] for prompt in prompts}
    for position in order:
        queues[prompts[position].tag].append(int(position))
    return list(take_turns(queues.values()))[:count]


def thumbnail(picture_HW3: Pixels) -> Pixels:
    """The picture at up to `SIDE` pixels. Small ones are magnified by a whole number, large ones are filtered down."""
    side = max(picture_HW3.shape[:2])
    if side <= SIDE:
        times = SIDE // side
        return picture_HW3.repeat(times, axis=0).repeat(times, axis=1)
    image = Image.fromarray(picture_HW3)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def shrink_png(path: Path, width: int) -> bytes:
    """The bytes of the PNG file `path`, made smaller if it is wider than `width` pixels."""
    picture_HW3 = decode_png(path.read_bytes())
    image = Image.fromarray(picture_HW3)
    image.thumbnail((width, image.height), Image.Resampling.LANCZOS)
    return encode_png(np.asarray(image))


def strip(pool: Pool, prompt: int, count: int) -> Pixels:
    """The first `count` pictures of a prompt in a row: a frame around the judge's choice, a bar under right ones.

    If the pool is smaller, space is left, so that the strips of all models have the same width.
    """
    pictures_NHW3 = pool.pictures_PNHW3[prompt, :count]
    chosen = select(pool.judged_PN[prompt : prompt + 1, :count])[0]
    tiles = [
        framed(thumbnail(picture), number == chosen, bool(pool.correct_PN[prompt, number]))
        for number, picture in enumerate(pictures_NHW3)
    ]
    missing = np.full_like(tiles[0], 255)
    return np.concatenate(tiles + [missing] * (count - len(tiles)), axis=1)


def framed(picture_HW3: Pixels, chosen: bool, right: bool) -> Pixels:
    """One picture with its marks, and space to the right and below."""
    frame = np.pad(picture_HW3 * 0, ((FRAME, FRAME), (FRAME, FRAME), (0, 0)))
    frame[:] = _rgb(CHOSEN if chosen else "white")
    frame[FRAME:-FRAME, FRAME:-FRAME] = picture_HW3
    bar = np.empty((BAR, frame.shape[1], 3), np.uint8)
    bar[:] = _rgb(RIGHT if right else "white")
    if not right:
        bar[BAR // 2, FRAME:-FRAME] = _rgb(QUIET)
    tile = np.concatenate([frame, np.full((1, frame.shape[1], 3), 255, np.uint8), bar])
    return np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def _rgb(colour: str) -> Pixels:
    return (np.array(to_rgb(colour)) * 255).round().astype(np.uint8)

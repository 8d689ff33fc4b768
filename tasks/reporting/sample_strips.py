"""Small pictures of samples: thumbnails, and strips in which the judge's choice and the right pictures are marked.

Shapes: N pictures of one prompt, (N, H, W, 3) uint8. A strip has a fourth channel, and is transparent between the
pictures, so that it fits a light and a dark page.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgba
from numpy.typing import NDArray
from PIL import Image

from tasks.computing.seeds import numpy_generator
from tasks.data.picture_files import decode_png
from tasks.evaluation.best_of_n import select
from tasks.evaluation.picture_pool import Pool
from tasks.evaluation.prompts.evaluation_prompts import Prompt, take_turns
from tasks.reporting.figure_style import CHOSEN, RIGHT, SMALL

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
    return compact_png(np.asarray(image))


def compact_png(pixels: Pixels) -> bytes:
    """PNG bytes of a picture (H, W, 3) or of a strip (H, W, 4), smaller than in a shard: people send the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


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
    missing = np.zeros_like(tiles[0])
    return np.concatenate(tiles + [missing] * (count - len(tiles)), axis=1)


def framed(picture_HW3: Pixels, chosen: bool, right: bool) -> Pixels:
    """One picture with its marks as (H, W, 4), and space to the right and below. What has no mark is transparent."""
    height, width, _ = picture_HW3.shape
    tile = np.zeros((height + 2 * FRAME + 1 + BAR + GAP, width + 2 * FRAME + GAP, 4), np.uint8)
    frame, bar = tile[: height + 2 * FRAME, :-GAP], tile[-BAR - GAP : -GAP, :-GAP]
    if chosen:
        frame[:] = _opaque(CHOSEN)
    frame[FRAME:-FRAME, FRAME:-FRAME, :3] = picture_HW3
    frame[FRAME:-FRAME, FRAME:-FRAME, 3] = 255
    if right:
        bar[:] = _opaque(RIGHT)
    else:
        bar[BAR // 2, FRAME:-FRAME] = _opaque(SMALL)
    return tile


def _opaque(colour: str) -> Pixels:
    return (np.array(to_rgba(colour)) * 255).round().astype(np.uint8)

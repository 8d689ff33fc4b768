"""A small sheet of a model's pictures, by which a person tells models or moments of a training apart at a glance.

Shapes: P prompts, N pictures of each, (P, N, H, W, 3) uint8.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROWS, COLUMNS = 2, 6
SIDE = 64
"""The pixels of a picture's side on the sheet."""
GAP = 4


def write_sample_sheet(pictures: Path, sheet: Path) -> None:
    """Write a PNG of the first picture of up to 12 prompts of the file `pictures`, a NumPy array (P, N, H, W, 3).

    The prompts are spread evenly over all. So the sheets of models that drew the same prompts show the same ones.
    """
    pictures_PNHW3 = np.load(pictures, mmap_mode="r")
    prompts = len(pictures_PNHW3)
    shown = sorted({number * prompts // (ROWS * COLUMNS) for number in range(ROWS * COLUMNS)})
    picture_sheet([np.asarray(pictures_PNHW3[prompt, 0]) for prompt in shown]).save(sheet)


def picture_sheet(pictures: Sequence[np.ndarray], side: int = SIDE) -> Image.Image:
    """A page with the pictures (H, W, 3) in rows of 6, each drawn as a square of `side` pixels."""
    page = Image.new("RGB", (COLUMNS * (side + GAP) - GAP, -(-len(pictures) // COLUMNS) * (side + GAP) - GAP), "white")
    for place, picture in enumerate(pictures):
        image = Image.fromarray(picture)
        # small pictures are magnified in whole pixels, large ones are filtered down
        filter_ = Image.Resampling.NEAREST if image.width <= side else Image.Resampling.LANCZOS
        row, column = divmod(place, COLUMNS)
        page.paste(image.resize((side, side), filter_), (column * (side + GAP), row * (side + GAP)))
    return page

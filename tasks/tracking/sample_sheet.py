"""A small sheet of a model's pictures, by which a person tells the models of a run apart at a glance.

Shapes: P prompts, N pictures of each, (P, N, H, W, 3) uint8.
"""

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
    page = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, -(-len(shown) // COLUMNS) * (SIDE + GAP) - GAP), "white")
    for place, prompt in enumerate(shown):
        image = Image.fromarray(np.asarray(pictures_PNHW3[prompt, 0]))
        # small pictures are magnified in whole pixels, large ones are filtered down
        filter_ = Image.Resampling.NEAREST if image.width <= SIDE else Image.Resampling.LANCZOS
        row, column = divmod(place, COLUMNS)
        page.paste(image.resize((SIDE, SIDE), filter_), (column * (SIDE + GAP), row * (SIDE + GAP)))
    page.save(sheet)

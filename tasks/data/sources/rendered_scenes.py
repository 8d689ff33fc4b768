"""Rendered scenes as a source: as many samples as asked for, each split from its own random stream."""

from collections.abc import Iterator

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.data.scenes import render, sample_scene


def scene_pictures(seed: int, split: str, count: int, size: int) -> Iterator[tuple[np.ndarray, str]]:
    """`count` pictures, uint8 (size, size, 3), with their captions. More samples begin with the same ones."""
    rng = numpy_generator(seed, "scenes", split)
    for _ in range(count):
        scene = sample_scene(rng)
        yield render(scene, size), scene.caption

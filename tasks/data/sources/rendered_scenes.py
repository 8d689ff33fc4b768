"""Rendered scenes as a source: as many samples as wanted. Each split has a random stream of its own."""

from collections.abc import Iterator

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.data.scenes import render, sample_scene


def scene_pictures(seed: int, split: str, count: int, size: int) -> Iterator[tuple[np.ndarray, str]]:
    """`count` pictures, uint8 (size, size, 3), with their captions. A larger count begins with the same samples."""
    rng = numpy_generator(seed, "scenes", split)
    for _ in range(count):
        scene = sample_scene(rng)
        yield render(scene, size), scene.caption

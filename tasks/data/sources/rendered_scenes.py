"""Rendered scenes as a source: as many samples as wanted. Each split has a random stream of its own."""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.data.scenes import draw_task, render, sample_scene


def scene_pictures(
    seed: int, stream: Sequence[str], count: int, size: int, tasks: Sequence[str] = ()
) -> Iterator[tuple[np.ndarray, str]]:
    """`count` pictures, uint8 (size, size, 3), with their captions. A larger count begins with the same samples.

    `stream` names the random stream, and `tasks` the tasks whose scenes are drawn; none stands for all.
    """
    rng = numpy_generator(seed, "scenes", *stream)
    for _ in range(count):
        scene = sample_scene(rng, draw_task(rng, tasks) if tasks else None)
        yield render(scene, size), scene.caption

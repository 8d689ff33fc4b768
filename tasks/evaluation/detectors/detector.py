"""What GenEval needs from an object detector: objects with score, box and mask, and the colour of each.

GenEval uses Mask2Former for the objects and CLIP for their colours (`tasks.evaluation.detectors.mask2former_detector`).
Scenes have a detector of their own (`tasks.evaluation.detectors.scene_detector`). Any class that implements `Detector`
can score pictures, because the rules use nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.uint8]
"""One picture (H, W, 3) or more (B, H, W, 3), (P, N, H, W, 3)."""

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels: the left, upper, right and lower edge."""

NOTES: dict[str, str | None] = {
    "scenes": None,
    "mask2former": (
        "Objects were found by a Mask2Former with transformers' weights, which are not GenEval's own (mmdet's): "
        "compare these scores only with scores by the same detector."
    ),
}
"""What a report must say beside the scores of each detector, by the detector's name."""


@dataclass(frozen=True)
class Detection:
    """One object found in a picture.

    `score` is in [0, 1]; `box` is (x0, y0, x1, y1) in pixels, its far edges exclusive; `mask` is boolean (H, W).
    """

    class_name: str
    score: float
    box: Box
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Thresholds:
    """Which detections count. The defaults are GenEval's for Mask2Former. Scores of other detectors mean other things.

    An object counts if its score is above `detection`, or above `counting` in the counting task. Of each class at most
    the `max_objects` best count. If `max_overlap` is 1, as published, boxes may overlap freely.
    """

    detection: float = 0.3
    counting: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0


class Detector(Protocol):
    """Finds objects in pictures by their pixels alone, and names the colour of what it found."""

    name: str
    thresholds: Thresholds
    class_names: tuple[str, ...]
    """Every class that the detector can find."""
    note: str | None
    """The detector's entry in `NOTES`."""

    def detect(self, pictures: Pictures) -> list[list[Detection]]:
        """The objects of each picture of a batch (B, H, W, 3), in any order."""
        ...

    def colours(self, picture: Pictures, detections: Sequence[Detection]) -> list[str]:
        """The colour name of each of these detections, all of one class, in their picture (H, W, 3)."""
        ...

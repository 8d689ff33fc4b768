"""GenEval's rule for "left of", "right of", "above" and "below": where one object's box lies from another's.

The rule is the published evaluation's (Ghosh et al., 2023). GenEval's tools list the relations that hold in no fixed
order; here they come in the order of `RELATIONS`.
"""

import numpy as np

from tasks.data.scene_vocabulary import RELATIONS
from tasks.evaluation.detectors.detector import Box

POSITION_MARGIN = 0.1
"""An offset along an axis counts only beyond this share of the sum of both objects' extents along it."""


def relations(a: Box, b: Box) -> tuple[str, ...]:
    """Where box a lies from box b: none, one or two of `RELATIONS`.

    Let o be the offset of the centres, and o' the offset with each axis shortened by the margin, to 0 at the least.
    A relation holds if o' / |o| is more than one half in its direction. "Left of" is -x, "above" is -y.
    """
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a, b
    offset = np.array([ax0 + ax1 - bx0 - bx1, ay0 + ay1 - by0 - by1]) / 2
    extents = np.abs([ax1 - ax0, ay1 - ay0]) + np.abs([bx1 - bx0, by1 - by0])
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_MARGIN * extents, 0)
    if (np.abs(beyond) < 1e-3).all():
        return ()
    dx, dy = beyond / np.linalg.norm(offset)
    return tuple(
        name for name, holds in zip(RELATIONS, (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5), strict=True) if holds
    )

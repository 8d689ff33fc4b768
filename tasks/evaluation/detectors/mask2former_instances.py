"""Turns a Mask2Former's raw outputs into the objects of a picture, by the rule of mmdet's instance head.

Every query is a candidate for every class. Of all (query, class) pairs the 100 with the highest class probability are
taken, so one query may be taken several times. An object's mask is where the query's mask logit, enlarged to the
picture, is above 0. Its score is the class probability times the mean mask probability inside the mask. Its box is the
box around the mask. So masks may overlap, and nothing is merged or voted on. The panoptic reading of the same outputs
finds other objects.

Shapes: Q queries, K classes, M masks, h and w of the mask logits (a quarter of the network's input), H and W of the
picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tasks.evaluation.detectors.detector import Detection

MOST_INSTANCES = 100
"""(query, class) pairs that are looked at in a picture: mmdet's `max_per_image`."""

LEAST_AREA = 1e-6
"""Added to the number of a mask's pixels before dividing by it, as mmdet does, so that an empty mask scores 0."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """(height, width) in pixels of the network's input, of the part of it that is not padding, and of the picture."""

    padded: Size
    content: Size
    picture: Size


def instances(
    class_logits_QK1: Tensor,
    mask_logits_Qhw: Tensor,
    names: Sequence[str],
    sizes: Sizes,
    least_score: float = 0.0,
) -> list[Detection]:
    """The objects of one picture, best class probability first.

    The last of the K + 1 class logits is "no object"; `names` are the names of the K classes. An object's score cannot
    exceed its class probability. So objects whose class probability is not above `least_score` are left out before
    their masks are enlarged. Objects with an empty mask, which score 0, are left out too.
    """
    probabilities_QK = class_logits_QK1.softmax(dim=-1)[:, :-1]
    best, places = probabilities_QK.flatten().topk(min(MOST_INSTANCES, probabilities_QK.numel()))
    best, places = best[best > least_score], places[best > least_score]
    queries, labels = places // len(names), places % len(names)
    used, rows = queries.unique(return_inverse=True)  # so that the mask of each query is enlarged once
    logits_MHW = enlarge(mask_logits_Qhw[used], sizes)
    masks_MHW, quality_M = logits_MHW > 0, mask_quality(logits_MHW)
    masks, scores = masks_MHW.cpu().numpy(), (best * quality_M[rows]).tolist()
    return [
        Detection(names[label], score, mask_box(masks[row]), masks[row])
        for label, score, row in zip(labels.tolist(), scores, rows.tolist(), strict=True)
        if masks[row].any()
    ]


def enlarge(mask_logits_Mhw: Tensor, sizes: Sizes) -> Tensor:
    """Mask logits (M, H, W) of the picture's size: enlarged to the padded input, cut to the content, resized."""
    height, width = sizes.content
    return _resize(_resize(mask_logits_Mhw, sizes.padded)[:, :height, :width], sizes.picture)


def mask_quality(logits_MHW: Tensor) -> Tensor:
    """The mean mask probability (M,) of the pixels inside each mask."""
    inside_MHW = logits_MHW > 0
    total_M = (logits_MHW.sigmoid() * inside_MHW).flatten(1).sum(dim=1)
    return total_M / (inside_MHW.flatten(1).sum(dim=1) + LEAST_AREA)


def mask_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around a mask (H, W), with exclusive far edges. All are 0 for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _resize(logits_Mhw: Tensor, size: Size) -> Tensor:
    """Resize bilinearly. The outer edges of the first and last pixels stay in place (`align_corners=False`)."""
    return F.interpolate(logits_Mhw[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

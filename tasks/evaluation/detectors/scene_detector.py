"""A detector for scenes: finds, names and scores plain coloured shapes from the pixels alone.

A picture consists of its ground (the median colour of its border) and the parts that differ from it. A part of several
colours is split by colour. Each part becomes a soft mask, which says how far each pixel lies on the way from the
ground's colour to the part's colour. The mask's area and centre of mass give the size and place that each of the six
shapes must have. The shape whose template overlaps the mask best names the part. The score is that overlap, on a scale
where 1 is perfect, and 0 is the overlap that a wrong shape can reach: the most similar other shape, or a blob.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tasks.data.scene_shapes import AREAS, CENTROID_Y, coverage
from tasks.data.scene_vocabulary import COLOURS, SHAPES
from tasks.evaluation.detectors.detector import NOTES, Detection, Pictures, Thresholds

GROUND_DISTANCE = 45.0
"""A pixel this far from the ground (Euclidean in RGB, levels up to 255) belongs to a part.

It is more than noise, and less than the distance of a pixel that an edge covers by half.
"""

EXPLAINED_DISTANCE = 40.0
"""A pixel this near the line from the ground to a colour is that colour or its rim. Other colours are over 60 off."""

SECOND_COLOUR_SHARE = 0.15
"""A part is split by colour if a further colour has at least this share of its pixels."""

PLAIN_SHARE = 1 / 3
"""The share of a part's pixels that show its colour unmixed. On the thinnest ring it is about this."""

LEAST_AREA = 12 / 32**2
"""A part below this share of the picture is noise. It is a third of the smallest shape's area."""

SCENE_THRESHOLDS = Thresholds(detection=0.25, counting=0.25)

BLOB_OVERLAP = 0.6
"""The overlap that a blob, which looks like no shape, may reach with the shape most like it (1 is equal)."""

EDGES = (1.0, 2.5)
"""Widths of a template's outline in pixels: as it is drawn, and as soft as an autoencoder may make it."""

_PALETTE = np.array(list(COLOURS.values()), dtype=np.float64)
_NAMES = tuple(COLOURS)
_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = ndimage.generate_binary_structure(2, 2)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class SceneDetector:
    """A `Detector` of the six shapes and ten colours on a plain ground."""

    name = "scenes"
    thresholds = SCENE_THRESHOLDS
    class_names = SHAPES
    note = NOTES["scenes"]

    def detect(self, pictures: Pictures) -> list[list[Detection]]:
        """The parts of each picture of (B, H, W, 3) that are large enough, each named as the shape it fits best."""
        return [self._detect_one(picture.astype(np.float64)) for picture in pictures]

    def colours(self, picture: Pictures, detections: Sequence[Detection]) -> list[str]:
        """The palette colour nearest to each detection's own colour."""
        pixels = picture.astype(np.float64)
        ground = _ground(pixels)
        return [_nearest_name(_colour(pixels, ground, found.mask)) for found in detections]

    def _detect_one(self, picture: Array) -> list[Detection]:
        ground = _ground(picture)
        least = LEAST_AREA * picture.shape[0] * picture.shape[1]
        foreground = np.linalg.norm(picture - ground, axis=-1) > GROUND_DISTANCE
        found = []
        for part in _components(foreground, least):
            for mask in _split_by_colour(picture, ground, part, least):
                found.append(_fit(picture, ground, mask, foreground & ~mask))
        return found


def _components(mask: Mask, least_area: float) -> list[Mask]:
    """The 4-connected components of a mask that have at least this many pixels."""
    labels, count = ndimage.label(mask, _CROSS)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == label for label in range(1, count + 1) if areas[label] >= least_area]


def _split_by_colour(picture: Array, ground: Array, part: Mask, least_area: float) -> list[Mask]:
    """The part itself if one colour explains it, else its pieces, each of one colour.

    A palette colour explains a pixel whose colour lies near the line from that colour to the ground. So the mixed
    pixels of a rim count too.
    """
    pixels = picture[part] - ground
    distances = np.minimum(_ray_distances(pixels, _PALETTE - ground), EXPLAINED_DISTANCE)
    colours = [distances.sum(axis=0).argmin()]
    enough = max(SECOND_COLOUR_SHARE * len(pixels), least_area)
    while True:
        left = distances[distances[:, colours].min(axis=1) >= EXPLAINED_DISTANCE]
        explained = (left < EXPLAINED_DISTANCE).sum(axis=0)
        if explained.max() < enough:
            break
        colours.append(explained.argmax())
    if len(colours) == 1:
        return [part]
    owner = np.full(part.shape, -1)
    owner[part] = distances[:, colours].argmin(axis=1)
    return [piece for index in range(len(colours)) for piece in _components(owner == index, least_area)]


def _ray_distances(points: Array, ends: Array) -> Array:
    """The distances (N, K) of points (N, 3) from the segments that run from the origin to each end (K, 3)."""
    squares = np.maximum(
        (ends**2).sum(axis=1), 1.0
    )  # at least 1: the ground may be a palette colour, and the segment a point
    along = np.clip(points @ ends.T / squares, 0, 1)
    return np.linalg.norm(points[:, None] - along[:, :, None] * ends, axis=-1)


def _nearest_name(colour: Array) -> str:
    return _NAMES[np.linalg.norm(_PALETTE - colour, axis=1).argmin()]


def _ground(picture: Array) -> Array:
    """The median colour of the picture's border."""
    return np.median(np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]]), axis=0)


def _colour(picture: Array, ground: Array, mask: Mask) -> Array:
    """A part's own colour: the mean of the third of its pixels farthest from the ground, without its mixed rim."""
    pixels = picture[mask]
    distances = np.linalg.norm(pixels - ground, axis=1)
    return pixels[distances >= np.quantile(distances, 1 - PLAIN_SHARE)].mean(axis=0)


def _fit(picture: Array, ground: Array, mask: Mask, others: Mask) -> Detection:
    """The shape that fits one part best, with its score. `others` are the pixels of all other parts."""
    towards = _colour(picture, ground, mask) - ground
    soft = np.clip((picture - ground) @ towards / (towards @ towards), 0, 1)
    soft *= ndimage.binary_dilation(mask, _SQUARE) & ~others
    overlaps = _overlaps(soft)
    name = max(overlaps, key=overlaps.__getitem__)
    score = (overlaps[name] - _CHANCE[name]) / (1 - _CHANCE[name])
    return Detection(name, max(score, 0.0), _box(mask), mask)


def _overlaps(soft: Array) -> dict[str, float]:
    """The overlap of a soft mask (H, W) with each shape of the same area and centre of mass.

    It is the sum of the pixels' minima divided by the sum of their maxima: intersection over union of soft masks.
    """
    height, width = soft.shape
    area = soft.sum()
    x = (soft.sum(axis=0) @ (np.arange(width) + 0.5)) / area
    y = (soft.sum(axis=1) @ (np.arange(height) + 0.5)) / area
    overlaps = {}
    for shape in SHAPES:
        size = np.sqrt(area / AREAS[shape])
        centre = x, y - CENTROID_Y[shape] * size
        templates = [coverage(shape, *centre, size, height, width, edge) for edge in EDGES]
        overlaps[shape] = max(float(np.minimum(soft, one).sum() / np.maximum(soft, one).sum()) for one in templates)
    return overlaps


def _chance() -> dict[str, float]:
    """For each shape the overlap that a wrong shape can reach: the most similar other shape, or a blob."""
    drawn = {shape: _overlaps(coverage(shape, 32, 32, 20, 64, 64)) for shape in SHAPES}
    similar = {shape: max(drawn[other][shape] for other in SHAPES if other != shape) for shape in SHAPES}
    return {shape: max(overlap, BLOB_OVERLAP) for shape, overlap in similar.items()}


_CHANCE = _chance()


def _box(mask: Mask) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)

"""GenEval's scoring rules: does a picture show what the prompt asked for, by what a detector found in it?

The rules are those of GenEval's published evaluation (Ghosh et al., 2023), with which SANA-1.5 is scored. One detail is
made definite: if a reason lists two relations, they come in a fixed order (see `tasks.evaluation.relative_position`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.data.scene_vocabulary import COLOURS, Line
from tasks.evaluation.detectors.detector import Box, Detection, Thresholds
from tasks.evaluation.relative_position import relations

PUBLISHED_THRESHOLDS = Thresholds()

COLOUR_ORDER = tuple(COLOURS)

ColoursOf = Callable[[Sequence[Detection]], list[str]]
"""A function that names the colour of each of these detections, which must be of one class."""


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is correct, the reasons why not (one per line), and the detections that counted, by class."""

    correct: bool
    reason: str
    kept: dict[str, list[Detection]]


def judge_picture(
    line: Line, detections: Sequence[Detection], colours_of: ColoursOf, thresholds: Thresholds = PUBLISHED_THRESHOLDS
) -> Verdict:
    """Score one picture by its detections.

    The picture must show everything in the line's `include`, and nothing in its `exclude`. `thresholds` should be the
    detector's own; the default is GenEval's for Mask2Former.
    """
    kept = keep(detections, line["tag"], thresholds)
    matched: list[list[Detection] | None] = []
    reasons: list[str] = []
    for need in line["include"]:
        found = kept.get(need["class"], [])[: need["count"]]
        reason = _missing(need, found, matched, colours_of)
        matched.append(None if reason else found)
        reasons += [reason] if reason else []
    for need in line.get("exclude", ()):
        count = len(kept.get(need["class"], ()))
        if count >= need["count"]:
            reasons.append(f"expected {need['class']}<{need['count']}, found {count}")
    return Verdict(not reasons, "\n".join(reasons), kept)


def keep(detections: Sequence[Detection], tag: str, thresholds: Thresholds) -> dict[str, list[Detection]]:
    """The detections that count in the task `tag`, by class, best first.

    Of equal scores the detector's last comes first, as the published rules turn an ascending order round
    (`np.argsort(scores)[::-1]`). NumPy leaves the order of equal scores open in long lists; here it is always this.
    """
    threshold = thresholds.counting if tag == "counting" else thresholds.detection
    by_class: dict[str, list[Detection]] = {}
    for detection in reversed(sorted(detections, key=lambda one: one.score)):
        if detection.score > threshold:
            by_class.setdefault(detection.class_name, []).append(detection)
    return {name: suppress(found[: thresholds.max_objects], thresholds.max_overlap) for name, found in by_class.items()}


def suppress(detections: Sequence[Detection], max_overlap: float) -> list[Detection]:
    """Drop each detection whose box overlaps a better one by `max_overlap` or more. At 1, as published, none is."""
    kept: list[Detection] = []
    for detection in detections:
        if max_overlap == 1 or all(overlap(detection.box, better.box) < max_overlap for better in kept):
            kept.append(detection)
    return kept


def overlap(a: Box, b: Box) -> float:
    """The intersection over union of two boxes, in GenEval's convention that a box includes its last pixel."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    total = _area(a) + _area(b) - shared
    return shared / total if total else 0.0


def _missing(
    need: Line, found: list[Detection], matched: list[list[Detection] | None], colours_of: ColoursOf
) -> str | None:
    """Why `found` does not meet this need, or None. `found` holds the best detections, as many as are needed."""
    name, count = need["class"], need["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    if "color" in need:
        colours = colours_of(found)
        if colours.count(need["color"]) < count:
            listed = ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOUR_ORDER if colour in colours)
            number = colours.count(need["color"])
            return f"expected {need['color']} {name}>={count}, found {number} {need['color']}; and {listed}"
    if "position" in need:
        relation, index = need["position"]
        return _misplaced(name, relation, found, matched[index])
    return None


def _misplaced(name: str, relation: str, found: list[Detection], targets: list[Detection] | None) -> str | None:
    """Why not every found object stands in `relation` to every target, or None.

    `targets` is None if the picture does not meet their own need.
    """
    if targets is None:
        return f"no target for {name} to be {relation}"
    for one in found:
        for target in targets:
            true = relations(one.box, target.box)
            if relation not in true:
                return f"expected {name} {relation} target, found {' and '.join(true)} target"
    return None


def _area(box: Box) -> float:
    """The pixels of a box, its last row and column included; 0 if it is empty."""
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

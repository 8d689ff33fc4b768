"""GenEval's scoring rules: is what a detector found in a picture what the prompt asked for?

The rules are those of GenEval's published evaluation (Ghosh et al., 2023), which SANA-1.5 is scored with. One detail is
made definite: where a reason lists two relations, they come in a fixed order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.data.scene_vocabulary import COLOURS, Line
from tasks.evaluation.detectors.detector import Box, Detection, Thresholds
from tasks.evaluation.relative_position import relations

PUBLISHED_THRESHOLDS = Thresholds()

COLOUR_ORDER = tuple(COLOURS)

ColoursOf = Callable[[Sequence[Detection]], list[str]]
"""The colour name of each of these detections, which are of one class."""


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

    Everything in the line's `include` must be there and nothing in its `exclude` may be. `thresholds` are GenEval's
    own for Mask2Former unless the detector's are given.
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
    """The detections that count in the task `tag`, by class, best first; equal scores keep the detector's order."""
    threshold = thresholds.counting if tag == "counting" else thresholds.detection
    by_class: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: -one.score):
        if detection.score > threshold:
            by_class.setdefault(detection.class_name, []).append(detection)
    return {name: suppress(found[: thresholds.max_objects], thresholds.max_overlap) for name, found in by_class.items()}


def suppress(detections: Sequence[Detection], max_overlap: float) -> list[Detection]:
    """Drop each detection whose box overlaps a better one by `max_overlap` or more; 1 turns this off, as published."""
    kept: list[Detection] = []
    for detection in detections:
        if max_overlap == 1 or all(overlap(detection.box, better.box) < max_overlap for better in kept):
            kept.append(detection)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in GenEval's convention that a box includes its last pixel."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    total = _area(a) + _area(b) - shared
    return shared / total if total else 0.0


def _missing(
    need: Line, found: list[Detection], matched: list[list[Detection] | None], colours_of: ColoursOf
) -> str | None:
    """Why `found` does not meet this need, or None. Colour and place are asked of the best detections only."""
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
    """Why not every found object stands in `relation` to every target, or None."""
    if targets is None:
        return f"no target for {name} to be {relation}"
    for one in found:
        for target in targets:
            true = relations(one.box, target.box)
            if relation not in true:
                return f"expected {name} {relation} target, found {' and '.join(true)} target"
    return None


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

"""The scorer: a detector and GenEval's rules together give a verdict on each picture."""

from collections.abc import Sequence
from functools import partial

from tasks.data.scene_vocabulary import Line
from tasks.evaluation.detectors.detector import Detector, Pictures
from tasks.evaluation.geneval_rules import Verdict, judge_picture


def score_pictures(line: Line, pictures: Pictures, detector: Detector) -> list[Verdict]:
    """A verdict for each picture of (N, H, W, 3), all made for the prompt `line`, at the detector's own thresholds."""
    return score_batch([line] * len(pictures), pictures, detector)


def score_batch(lines: Sequence[Line], pictures: Pictures, detector: Detector) -> list[Verdict]:
    """A verdict for each picture of (B, H, W, 3), where picture i was made for the i-th of `lines`."""
    return [
        judge_picture(line, detections, partial(detector.colours, picture), detector.thresholds)
        for line, picture, detections in zip(lines, pictures, detector.detect(pictures), strict=True)
    ]

"""Pictures in, verdicts out: a detector and GenEval's rules together."""

from functools import partial

from tasks.data.vocabulary import Line
from tasks.geneval.detector import Detector, Pictures
from tasks.geneval.rules import Verdict, judge_picture


def score_pictures(line: Line, pictures: Pictures, detector: Detector) -> list[Verdict]:
    """A verdict for each picture of (N, H, W, 3), all made for the prompt `line`, at the detector's own thresholds."""
    return [
        judge_picture(line, detections, partial(detector.colours, picture), detector.thresholds)
        for picture, detections in zip(pictures, detector.detect(pictures), strict=True)
    ]

"""The scorer `geneval`: a detector and GenEval's rules."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.data.scene_vocabulary import Line
from tasks.evaluation.detectors.detector import Detection, Detector, Pictures
from tasks.evaluation.detectors.detector_choice import check_classes
from tasks.evaluation.geneval_rules import Verdict, judge_picture
from tasks.evaluation.picture_scoring import score_pictures
from tasks.evaluation.prompts.evaluation_prompts import Prompt


@dataclass(frozen=True)
class GenEvalScorer:
    """Scores pictures by what the detector finds in them."""

    detector: Detector
    name: str = "geneval"

    @property
    def note(self) -> str | None:
        """The detector's note."""
        return self.detector.note

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError if a prompt names a class that the detector cannot find."""
        check_classes((prompt.line for prompt in prompts), self.detector)

    def score(self, line: Line, pictures: Pictures) -> list[Verdict]:
        """A verdict for each picture of (N, H, W, 3), all drawn for the prompt `line`."""
        return score_pictures(line, pictures, self.detector)

    def label(self, pictures_QHW3: NDArray[np.uint8], lines: Sequence[Line]) -> NDArray[np.bool_]:
        """The verdict (Q, L) on every picture for every prompt. The detector sees each picture once."""
        yes_QL = np.zeros((len(pictures_QHW3), len(lines)), dtype=bool)
        for row, picture, found in zip(yes_QL, pictures_QHW3, self.detector.detect(pictures_QHW3), strict=True):
            colours = self._colours(picture, found)

            # The default argument binds this picture's colours.
            def colours_of(some: Sequence[Detection], colours: dict[int, str] = colours) -> list[str]:
                return [colours[id(detection)] for detection in some]

            row[:] = [judge_picture(line, found, colours_of, self.detector.thresholds).correct for line in lines]
        return yes_QL

    def _colours(self, picture: NDArray[np.uint8], found: Sequence[Detection]) -> dict[int, str]:
        """The colour of every detection, by its `id`.

        The detector is asked about one class at a time, because it takes detections of one class only.
        """
        colours = {}
        for name in {detection.class_name for detection in found}:
            same = [detection for detection in found if detection.class_name == name]
            colours.update(zip(map(id, same), self.detector.colours(picture, same), strict=True))
        return colours

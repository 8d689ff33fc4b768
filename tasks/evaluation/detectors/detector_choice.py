"""The choice of detector, in one place for every stage and command that scores pictures."""

from collections.abc import Iterable
from pathlib import Path

from tasks.data.published_files import published_path
from tasks.data.scene_vocabulary import Line
from tasks.evaluation.detectors.detector import NOTES, Detector
from tasks.evaluation.detectors.scene_detector import SceneDetector
from tasks.evaluation.prompts.prompt_lines import named_classes
from tasks.params.evaluation_params import GenEval
from tasks.system.errors import UserError


def load_detector(name: str, mask2former: Path | None, clip: Path | None, device: str) -> Detector:
    """The detector of this name. `mask2former` and `clip` are the folders of the two models that mask2former needs.

    Raises UserError for an unknown name, a folder that is not given, or a folder that does not hold its model.
    """
    if name not in NOTES:
        raise UserError(f"detector {name!r} is unknown: choose from {', '.join(NOTES)}")
    if name == "scenes":
        return SceneDetector()
    if mask2former is None or clip is None:
        raise UserError("the detector mask2former needs two folders: a Mask2Former of COCO's instances, and a CLIP")
    # imports transformers, which takes seconds
    from tasks.evaluation.detectors.mask2former_detector import load_mask2former_detector

    return load_mask2former_detector(mask2former, clip, device)


def build_detector(geneval: GenEval, device: str) -> Detector:
    """The detector that params.yaml chooses. Raises UserError naming a folder that does not hold its model."""
    folders = (published_path(path) if path else None for path in (geneval.mask2former_path, geneval.clip_path))
    return load_detector(geneval.detector, *folders, device)


def check_classes(lines: Iterable[Line], detector: Detector) -> None:
    """Raise UserError if a prompt names a class that the detector cannot find: its pictures would always be wrong."""
    known = set(detector.class_names)
    for line in lines:
        for name in named_classes(line):
            if name not in known:
                raise UserError(
                    f"the detector {detector.name} finds no {name!r}, which the prompt {line['prompt']!r} asks for: "
                    "choose a detector and prompts that fit"
                )

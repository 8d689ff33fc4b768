"""GenEval's kind of detector: a Mask2Former trained on COCO's 80 classes, and CLIP for colours, from local folders.

GenEval runs mmdet 2's `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`. Here the network comes from transformers, and
its outputs are read by mmdet's rule (`tasks.evaluation.detectors.mask2former_instances`). Three things differ from
GenEval's own run:

* The weights. Published folders for transformers hold Swin-S weights that the authors trained with their own code.
  GenEval's weights were trained with mmdet. Both reach about the same accuracy, but not the same detections, so scores
  can be compared only with scores by the same folder. The detector's `note` says so wherever such a score is reported.
* Resizing. Both resize the shorter side to 800 pixels (the longer to 1333 at most), bilinearly, and subtract ImageNet's
  mean. transformers uses Pillow, which smooths when it makes a picture smaller. mmdet uses OpenCV, which does not.
  Pictures below 800 pixels are enlarged, and there the two agree but for rounding.
* Padding. transformers' processor would stretch a picture to multiples of 32 pixels. That is switched off. As in mmdet,
  a grey margin at the right and the bottom fills the input up. Square pictures need none at 800 pixels.

Shapes: B pictures, H and W of a picture.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

from tasks.evaluation.detectors.clip_colours import ClipColours, load_clip_colours
from tasks.evaluation.detectors.detector import NOTES, Detection, Pictures
from tasks.evaluation.detectors.mask2former_instances import Sizes, instances
from tasks.evaluation.detectors.transformers_folders import load_parts
from tasks.evaluation.geneval_rules import PUBLISHED_THRESHOLDS
from tasks.evaluation.prompts.object_class_names import class_names
from tasks.system.errors import UserError

DIVISOR = 32
"""Sides of the network's input are multiples of this many pixels."""

GREY = 128 / 255
"""The level that padding is painted with, before the mean is subtracted."""

BATCH = 8


class Mask2FormerDetector:
    """`Detector` of COCO's 80 classes under GenEval's names, at GenEval's thresholds."""

    name = "mask2former"
    thresholds = PUBLISHED_THRESHOLDS
    note = NOTES["mask2former"]

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        processor: Mask2FormerImageProcessorPil,
        colour_classifier: ClipColours,
        device: str,
    ) -> None:
        self.model, self.processor, self.colour_classifier, self.device = model, processor, colour_classifier, device
        self.class_names = class_names()

    def detect(self, pictures: Pictures) -> list[list[Detection]]:
        """The objects of each picture of (B, H, W, 3) whose scores may reach the thresholds, in any order."""
        starts = range(0, len(pictures), BATCH)
        return [found for start in starts for found in self._detect_batch(pictures[start : start + BATCH])]

    def colours(self, picture: Pictures, detections: Sequence[Detection]) -> list[str]:
        """The colour name of each of these detections, all of one class, in their picture (H, W, 3)."""
        return self.colour_classifier.colours(picture, detections)

    @torch.no_grad()
    def _detect_batch(self, pictures: Pictures) -> list[list[Detection]]:
        pixels_B3HW, sizes = self.prepare(pictures)
        outputs = self.model(pixel_values=pixels_B3HW.to(self.device))
        least = min(self.thresholds.detection, self.thresholds.counting)
        return [
            instances(class_logits.float(), mask_logits.float(), self.class_names, sizes, least)
            for class_logits, mask_logits in zip(
                outputs.class_queries_logits, outputs.masks_queries_logits, strict=True
            )
        ]

    def prepare(self, pictures: Pictures) -> tuple[Tensor, Sizes]:
        """The network's input (B, 3, height, width) for pictures (B, H, W, 3): resized, normalised and padded.

        The picture lies at the top left of the input, and the padding at the right and the bottom.
        """
        resized = self.processor(
            images=list(pictures), size_divisor=0, input_data_format="channels_last", return_tensors="pt"
        )["pixel_values"]
        content = (resized.shape[2], resized.shape[3])
        padded = tuple(-(-side // DIVISOR) * DIVISOR for side in content)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self._mean, self._std))
        pixels_B3HW = ((GREY - mean) / std).expand(len(pictures), 3, *padded).clone()
        pixels_B3HW[:, :, : content[0], : content[1]] = resized
        return pixels_B3HW, Sizes(padded, content, pictures.shape[1:3])

    @property
    def _mean(self) -> Sequence[float]:
        return self.processor.image_mean

    @property
    def _std(self) -> Sequence[float]:
        return self.processor.image_std


def load_mask2former_detector(mask2former: Path, clip: Path, device: str) -> Mask2FormerDetector:
    """The detector whose models lie in two local folders. Raises UserError naming a folder that lacks its model."""
    parts = load_parts(
        mask2former,
        "Mask2Former",
        "mask2former",
        (("preprocessor_config.json",),),
        (Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil),
    )
    model, processor = parts
    check_labels(mask2former, model.config.id2label)
    return Mask2FormerDetector(model.to(device), processor, load_clip_colours(clip, device), device)


def check_labels(folder: Path, labels: dict[int, str]) -> None:
    """Raise UserError unless a model's labels can be COCO's 80 in COCO's order.

    COCO's names are spelled in several ways. So a label counts as wrong only if GenEval has that name at another index.
    """
    names = class_names()
    if len(labels) != len(names):
        raise UserError(f"{folder} tells {len(labels)} classes apart: GenEval needs a model of COCO's 80 (instances)")
    for index, label in labels.items():
        if label in names and names[index] != label:
            raise UserError(f"{folder} has {label!r} as class {index}, where COCO has {names[index]!r}")

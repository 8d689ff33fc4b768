"""The colour of an object by CLIP, as in GenEval: which of ten colours fits the object on a grey ground best?

Each colour is a class of a zero-shot classifier. Three sentences describe it; their normalised embeddings are averaged
and normalised again. The object is cut out by its box, and everything outside its mask is painted grey. GenEval's CLIP
is OpenAI's ViT-L/14; transformers has the same weights. The picture processor of transformers resizes with Pillow, as
GenEval does. If a side is odd, its centre crop may lie one pixel further.

Shapes: B crops, E channels of an embedding.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from tasks.evaluation.detectors.detector import Detection, Pictures
from tasks.evaluation.detectors.transformers_folders import load_parts
from tasks.evaluation.geneval_rules import COLOUR_ORDER

GROUND = (0x99, 0x99, 0x99)
"""What everything outside an object's mask is painted with."""

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
BATCH = 16


class ClipColours:
    """A CLIP model as a classifier of ten colours. Each class of objects has a classifier of its own."""

    def __init__(
        self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, processor: CLIPImageProcessorPil, device: str
    ) -> None:
        self.model, self.tokenizer, self.processor, self.device = model, tokenizer, processor, device
        self.classifier = cache(self._classifier)

    @torch.no_grad()
    def colours(self, picture: Pictures, detections: Sequence[Detection]) -> list[str]:
        """The colour name of each detection in the picture (H, W, 3). All detections must be of one class."""
        names: list[str] = []
        for start in range(0, len(detections), BATCH):
            crops = [cut_out(picture, detection) for detection in detections[start : start + BATCH]]
            pixels = self.processor(images=crops, return_tensors="pt")["pixel_values"].to(self.device)
            embeddings_BE = F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
            best = (embeddings_BE @ self.classifier(detections[0].class_name).T).argmax(dim=1)
            names += [COLOUR_ORDER[index] for index in best.tolist()]
        return names

    @torch.no_grad()
    def _classifier(self, name: str) -> Tensor:
        """The embeddings (10, E), each of length 1, of the ten colours of objects called `name`."""
        rows = []
        for colour in COLOUR_ORDER:
            sentences = [template.format(colour=colour, name=name) for template in TEMPLATES]
            tokens = self.tokenizer(sentences, padding=True, truncation=True, return_tensors="pt").to(self.device)
            embeddings = self.model.get_text_features(**tokens).pooler_output
            rows.append(F.normalize(F.normalize(embeddings, dim=-1).mean(dim=0), dim=0))
        return torch.stack(rows)


def cut_out(picture: Pictures, detection: Detection) -> Image.Image:
    """The part of a picture (H, W, 3) in the detection's box, with everything outside its mask painted grey."""
    left, top, right, bottom = (round(edge) for edge in detection.box)
    painted = np.where(detection.mask[..., None], picture, np.array(GROUND, dtype=np.uint8))
    return Image.fromarray(painted[top:bottom, left:right])


def load_clip_colours(folder: Path, device: str) -> ClipColours:
    """The CLIP in a folder that transformers wrote. Raises UserError naming the folder if it holds none."""
    files = (("preprocessor_config.json",), ("tokenizer.json", "vocab.json"))
    classes = (CLIPModel, AutoTokenizer, CLIPImageProcessorPil)
    model, tokenizer, processor = load_parts(folder, "CLIP", "clip", files, classes)
    return ClipColours(model.to(device), tokenizer, processor, device)

"""Features by which drawn pictures are compared with real ones: of a CLIP or DINO, or the autoencoder's latents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.autoencoder import Autoencoder
from tasks.data.picture_dataset import to_unit_range
from tasks.data.published_files import published_path
from tasks.evaluation.detectors.detector import Pictures
from tasks.system.errors import UserError

BATCH = 32
LATENTS = "latents of the autoencoder"
CLIP_WEIGHT = 100
"""CLIP score is 100 times the cosine, and at least 0 (Hessel et al. 2021, with the weight of torchmetrics)."""
VISION_MODELS = ("clip", "dinov2", "dinov3_vit", "vit")
"""The kinds of models that can give features, by `model_type` in their config.json."""


class Features(Protocol):
    """Turns pictures into vectors. `name` says which, wherever a distance is shown."""

    name: str

    def read(self, pictures_BHW3: Pictures) -> NDArray[np.float32]:
        """The features (B, D) of pictures."""
        ...


class LatentFeatures:
    """The autoencoder's latents, laid out as one vector for each picture."""

    name = LATENTS

    def __init__(self, autoencoder: Autoencoder, device: str) -> None:
        self.autoencoder, self.device = autoencoder, device

    @torch.no_grad()
    def read(self, pictures_BHW3: Pictures) -> NDArray[np.float32]:
        """The features (B, D) of pictures, D being channels times height times width of a latent."""
        starts = range(0, len(pictures_BHW3), BATCH)
        parts = (to_unit_range(pictures_BHW3[start : start + BATCH]).to(self.device) for start in starts)
        return torch.cat([self.autoencoder.encode(part).flatten(1).cpu() for part in parts]).numpy()


class VisionFeatures:
    """The pooled output of a published vision model, and with a CLIP the fit of captions."""

    def __init__(self, folder: Path, device: str, named_by: str = "evaluation.features_path") -> None:
        """Load the model of a folder, which the user named by the param or option `named_by`.

        Raises UserError naming both if the folder holds no model that gives features.
        """
        self.kind = _model_type(folder, named_by)
        self.name, self.device = f"{self.kind} of {folder.name}", device
        self.model, self.processor, self.tokenizer = _load(folder, self.kind)
        self.model.to(device)

    @torch.no_grad()
    def read(self, pictures_BHW3: Sequence[Pictures] | Pictures) -> NDArray[np.float32]:
        """The features (B, D) of pictures (H, W, 3), which may differ in size."""
        parts = []
        for start in range(0, len(pictures_BHW3), BATCH):
            images = list(pictures_BHW3[start : start + BATCH])
            pixels = self.processor(images=images, return_tensors="pt")["pixel_values"].to(self.device)
            read = self.model.get_image_features if self.kind == "clip" else self.model
            parts.append(read(pixel_values=pixels).pooler_output.float().cpu())
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def clip_scores(self, features_BD: NDArray[np.float32], captions: Sequence[str]) -> NDArray[np.float64] | None:
        """The CLIP score (B,) of each picture for its caption, or None if the model reads no text."""
        if self.tokenizer is None:
            return None
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(self.device)
        text_BD = self.model.get_text_features(**tokens).pooler_output.float().cpu()
        cosines = F.cosine_similarity(torch.from_numpy(features_BD), text_BD)
        return (CLIP_WEIGHT * cosines.clamp(min=0)).double().numpy()


def open_features(path: str | None, autoencoder: Autoencoder, device: str) -> Features:
    """The features that `evaluation.features_path` chooses. Raises UserError if its folder holds no such model."""
    return LatentFeatures(autoencoder, device) if path is None else VisionFeatures(published_path(path), device)


def read_features(file: Path) -> NDArray[np.float32]:
    """The features (M, D) of real pictures that the stage `scorer` wrote.

    Raises UserError that names the file and the first picture whose features are not finite.
    """
    features_MD = np.load(file)
    if len(broken := np.flatnonzero(~np.isfinite(features_MD).all(axis=1))):
        raise UserError(
            f"{file}: picture {broken[0]} of {len(features_MD)} has features that are not finite: "
            "run the stage scorer again"
        )
    return features_MD


def _model_type(folder: Path, named_by: str) -> str:
    """The kind of the model in a folder. Raises UserError if it gives no features."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise UserError(f"{named_by}: {folder / 'config.json'} cannot be read ({error})") from None
    if found not in VISION_MODELS:
        raise UserError(
            f"{named_by}: {folder} holds a {found!r} model: name a folder with one of {', '.join(VISION_MODELS)}"
        )
    return found


def _load(folder: Path, kind: str) -> list[Any]:
    """The model, its picture processor, and its tokenizer if it reads text. transformers takes seconds to import."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

    from tasks.evaluation.detectors.transformers_folders import load_parts

    weights = [("model.safetensors", "model.safetensors.index.json"), ("preprocessor_config.json",)]
    if kind == "clip":
        return load_parts(folder, "CLIP", kind, weights, (CLIPModel, AutoImageProcessor, AutoTokenizer))
    return [*load_parts(folder, "vision model", kind, weights, (AutoModel, AutoImageProcessor)), None]

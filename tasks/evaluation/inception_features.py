"""Features of an Inception network in a TorchScript file, with clean-fid's rule of resizing.

The FID's network is the Inception of 2015-12-05. NVIDIA's TorchScript file of it, `inception-2015-12-05.pt`, is the
one that StyleGAN and clean-fid use. SANA's evaluation uses pytorch-fid's copy of the same weights. Nothing is
downloaded: the user names the file.

A TorchScript file is a program that torch runs, with data that libtorch's own unpickler reads. It calls no Python, but
name only a file that you trust. The published file is known by its sha256, and only its features are called by its
name.

Pictures become 299 pixels square by clean-fid's rule (Parmar et al. 2022): bicubic with antialiasing by Pillow, channel
by channel in float32, without rounding to whole values. Here we leave SANA's evaluation, since pytorch-fid resizes
bilinearly and without antialiasing. The two give different FIDs for the same pictures.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model.finite_numbers import check_finite_weights
from tasks.data.stage_models import loading_models
from tasks.evaluation.detectors.detector import Pictures
from tasks.system.errors import UserError
from tasks.system.manifest import sha256_file

PUBLISHED_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""NVIDIA's `inception-2015-12-05.pt`, by the digest that its users check (k-diffusion's evaluation)."""
SIDE = 299
BATCH = 32


class InceptionFeatures:
    """The features of a network in a TorchScript file.

    The network takes float32 pictures (B, 3, 299, 299) and gives one vector for each. The published file is asked as
    clean-fid asks it: its `layers` take pictures in [-1, 1) and are not followed by the classifier. Any other file is
    called as it is, with values from 0 to 255.
    """

    def __init__(self, file: Path, device: str) -> None:
        """Load the network. Raises UserError naming the file if it holds none, or a weight that is not finite."""
        if not file.is_file():
            raise UserError(f"{file} is no file: name a TorchScript file of Inception, such as inception-2015-12-05.pt")
        try:
            self.network = torch.jit.load(file, map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} is no TorchScript file ({str(error).splitlines()[0]})") from None
        with loading_models():
            check_finite_weights(self.network.state_dict(), file)
        self.file, self.device = file, device
        self.published = sha256_file(file) == PUBLISHED_SHA256
        self.name = "Inception of 2015-12-05" if self.published else f"TorchScript network of {file.name}"

    @torch.no_grad()
    def read(self, pictures: Sequence[Pictures] | Pictures) -> NDArray[np.float32]:
        """The features (B, D) of pictures (H, W, 3), which may differ in size.

        Raises UserError naming the file if the network cannot read pictures or does not give vectors.
        """
        parts = []
        for start in range(0, len(pictures), BATCH):
            resized = np.stack([clean_resize(picture) for picture in pictures[start : start + BATCH]])
            pixels_B3HW = torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous().to(self.device)
            try:
                features = self._forward(pixels_B3HW)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(f"{self.file} cannot read pictures of {SIDE} pixels ({reason})") from None
            if not isinstance(features, torch.Tensor) or features.shape[0] != len(resized):
                raise UserError(f"{self.file} gives no vector for each picture: name a network that does")
            parts.append(features.flatten(1).float().cpu())
        return torch.cat(parts).numpy()

    def _forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return self.network.layers((pixels_B3HW - 128) / 128) if self.published else self.network(pixels_B3HW)


def clean_resize(picture_HW3: Pictures) -> NDArray[np.float32]:
    """A picture as float32 (299, 299, 3) with values from 0 to 255, resized by clean-fid's rule."""
    channels = [Image.fromarray(picture_HW3[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, axis=2).clip(0, 255)

"""What it takes to draw pictures with a network in training, beside the state of the training.

The memory of a batch is bounded, pictures are decoded one after another, and nothing is compiled anew. The modules that
use this are `tasks.training.preview` and `tasks.evaluation.short_scoring`.

Shapes: B pictures of a batch, C latent channels, H and W of a latent.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.network import NetworkConfig
from tasks.training.heldout_loss import HELDOUT_BYTES, heldout_batch_size

if TYPE_CHECKING:
    from model.autoencoder import Autoencoder


class OneByOneDecoder:
    """An autoencoder's decoder that takes one latent after another.

    The published autoencoder takes 4 GB for a picture of 512 pixels, beside the state of the training.
    """

    def __init__(self, autoencoder: "Autoencoder") -> None:
        self.latent_channels, self.downsampling = autoencoder.latent_channels, autoencoder.downsampling
        self._autoencoder = autoencoder

    def decode_pixels(self, latents_BCHW: Tensor) -> np.ndarray:
        """Pictures (B, H·downsampling, W·downsampling, 3), uint8."""
        return np.concatenate([self._autoencoder.decode_pixels(latent_CHW[None]) for latent_CHW in latents_BCHW])


def pictures_at_once(config: NetworkConfig, tokens: int, text_tokens: int, most: int) -> int:
    """Pictures of a batch, at latents of `tokens` and texts of `text_tokens` tokens; at most half of `most`.

    A batch has each prompt and the empty one. Its bytes are bounded as those of a held-out batch. Beside what a
    held-out batch takes, the solver keeps the keys and values of all blocks.
    """
    activations = heldout_batch_size(config, tokens, text_tokens)
    keys_values = HELDOUT_BYTES // (4 * 2 * config.depth * config.hidden_size * text_tokens)
    return max(1, min(most, activations, keys_values) // 2)


def uncompiled(is_compiled: bool) -> AbstractContextManager[object]:
    """Where training compiles its blocks, the pictures' shapes shall not make it compile them anew."""
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()

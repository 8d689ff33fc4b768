"""Drawing: the solver turns noise into latents of a prompt, and the autoencoder decodes them to 8-bit pixels.

Shapes: P prompts, N pictures of each, B pictures of a batch, C latent channels, H and W of a latent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.autoencoder import Autoencoder, load_autoencoder
from model.checkpoint import load_network
from model.network import Sana, TextContext
from model.sampler import sample
from model.text_encoder import TextEncoder, load_text_encoder, pad
from tasks.computing import ranks
from tasks.computing.precision import autocast
from tasks.computing.seeds import generator
from tasks.data.stage_models import loading_models
from tasks.evaluation.detectors.detector import Pictures
from tasks.params.experiment_params import Params
from tasks.system import paths
from tasks.system.progress import progress


@dataclass(frozen=True)
class Painter:
    """All that it takes to turn prompts into pictures."""

    network: Sana
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    params: Params
    device: str

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latent of a picture of the experiment's size."""
        side = self.params.shard.image_size // self.autoencoder.downsampling
        return self.autoencoder.latent_channels, side, side

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels."""
        _, *sides = self.latent_shape
        height, width = (self.autoencoder.downsampling * side for side in sides)
        return height, width

    def draw(
        self, prompts: Sequence[str], images_per_prompt: int, seed: int, label: str, file: Path | None = None
    ) -> Pictures:
        """Pictures (P, N, height, width, 3), in memory or, if they may be too many for it, in a new `.npy` file.

        The noise of a picture depends only on the seed, the position of its prompt and its own position. So models that
        draw with the same seed start from the same noise, whatever their batch sizes. Any number of ranks forms the
        same batches as one process. All ranks get the pictures; a file is written by rank 0 and read by all. `label`
        names the progress bar.
        """
        shape = (len(prompts), images_per_prompt, *self.picture_size, 3)
        keeps = file is None or ranks.rank() == 0
        pictures = new_pictures(shape, file) if keeps else None
        with progress(label, len(prompts) * images_per_prompt) as meter:
            for start, drawn in self._batches(prompts, images_per_prompt, seed):
                if pictures is not None:
                    pictures.reshape(-1, *shape[2:])[start : start + len(drawn)] = drawn
                meter.advance(len(drawn))
        if isinstance(pictures, np.memmap):
            pictures.flush()
        ranks.wait_for_all()
        # Copy-on-write: a rank that wrote into its pictures would not change the file.
        return np.load(file, mmap_mode="c") if pictures is None else pictures

    def _batches(self, prompts: Sequence[str], images_per_prompt: int, seed: int) -> Iterator[tuple[int, Pictures]]:
        """Every batch of pictures, with the position of its first picture. Ranks draw batches in turn; all get all."""
        texts, null_TE = self.text_encoder.encode(prompts), self.text_encoder.encode_null()
        total, size = len(prompts) * images_per_prompt, self.params.sampling.batch_size
        starts = range(0, total, size)
        for turn in range(0, len(starts), ranks.world_size()):
            own = np.zeros((size, *self.picture_size, 3), np.uint8)
            for start in starts[turn:][ranks.rank() : ranks.rank() + 1]:  # one batch, or none in the last turn
                pairs = [divmod(i, images_per_prompt) for i in range(start, min(start + size, total))]
                noise = torch.stack([self._noise(seed, *pair) for pair in pairs])
                own[: len(pairs)] = self._draw_batch([prompt for prompt, _ in pairs], noise, texts, null_TE)
            for start, drawn in zip(starts[turn:], ranks.gather_arrays(own), strict=False):
                yield start, drawn[: total - start]

    def _noise(self, seed: int, prompt: int, picture: int) -> Tensor:
        return torch.randn(self.latent_shape, generator=generator(seed, "picture", prompt, picture))

    @torch.no_grad()
    def _draw_batch(
        self, rows: Sequence[int], noise_BCHW: Tensor, texts: Sequence[Tensor], null_TE: Tensor
    ) -> Pictures:
        """Draw one batch. Each distinct prompt, and the empty prompt, passes the network's text layers only once."""
        sampling = self.params.sampling
        distinct = sorted(set(rows))
        with autocast(self.device, self.params.compute.dtype):
            context = self._context([texts[row] for row in distinct])
            null = self._context([null_TE])
            latents_BCHW = sample(
                self.network,
                noise_BCHW.to(self.device),
                context.index(torch.tensor([distinct.index(row) for row in rows], device=self.device)),
                null.index(torch.zeros(len(rows), dtype=torch.long, device=self.device)),
                sampler=sampling.sampler,
                steps=sampling.steps,
                guidance=sampling.guidance,
                flow_shift=self.params.diffusion.flow_shift,
            )
        return self.autoencoder.decode_pixels(latents_BCHW)

    def _context(self, texts: Sequence[Tensor]) -> TextContext:
        text_BTE, mask_BT = pad(texts)
        return self.network.encode_text(text_BTE.to(self.device), mask_BT.to(self.device))


def new_pictures(shape: tuple[int, ...], file: Path | None) -> Pictures:
    """An array for pictures, in memory or mapped to a new `.npy` file, of which memory holds the parts in use."""
    if file is None:
        return np.empty(shape, np.uint8)
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)


def load_painter(model: Path, params: Params, device: str) -> Painter:
    """A painter with the model in a folder, and the autoencoder and text encoder beside it, which it was trained on.

    Raises UserError that names the folder of the three which cannot be used.
    """
    with loading_models():
        return Painter(
            load_network(model, device).eval(),
            load_autoencoder(model.parent / paths.AUTOENCODER.name, device),
            load_text_encoder(model.parent / paths.TEXT_ENCODER.name, device),
            params,
            device,
        )

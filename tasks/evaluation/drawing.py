"""Pictures of prompts: noise through the network's solver and the autoencoder's decoder to 8-bit pixels.

Shapes: P prompts, N pictures of each, C latent channels.
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
from tasks.evaluation.detectors.detector import Pictures
from tasks.params.experiment import Params
from tasks.system import paths
from tasks.system.progress import progress


@dataclass(frozen=True)
class Painter:
    """All it takes to turn prompts into pictures. `seed` names the noise, `label` the progress bar."""

    network: Sana
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    params: Params
    device: str

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent of the experiment's picture size."""
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
        """Pictures (P, N, height, width, 3), in memory or, where they are too many for it, in a new `.npy` file.

        The noise of a picture depends on the seed, its prompt's position and its own position only, so that models
        drawn with the same seed start from the same noise, whatever their batches. Batches are those of one process
        on any number of ranks; all of them get the pictures, of a file those of rank 0.
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
        return np.load(file, mmap_mode="c") if pictures is None else pictures

    def _batches(self, prompts: Sequence[str], images_per_prompt: int, seed: int) -> Iterator[tuple[int, Pictures]]:
        """Every batch of pictures with the place of its first; ranks draw in turn, and all get what each has drawn."""
        texts, null_TE = self.text_encoder.encode(prompts), self.text_encoder.encode_null()
        total, size = len(prompts) * images_per_prompt, self.params.sampling.batch_size
        starts = range(0, total, size)
        for turn in range(0, len(starts), ranks.world_size()):
            own = np.zeros((size, *self.picture_size, 3), np.uint8)
            for start in starts[turn:][ranks.rank() : ranks.rank() + 1]:
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
        """One batch; each of its prompts, and the empty one, passes the network's text layers once."""
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
        return decode(self.autoencoder, latents_BCHW)

    def _context(self, texts: Sequence[Tensor]) -> TextContext:
        text_BTE, mask_BT = pad(texts)
        return self.network.encode_text(text_BTE.to(self.device), mask_BT.to(self.device))


def new_pictures(shape: tuple[int, ...], file: Path | None) -> Pictures:
    """Room for pictures in memory or in a new `.npy` file, of which memory holds what is in use."""
    if file is None:
        return np.empty(shape, np.uint8)
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)


def load_painter(model: Path, params: Params, device: str) -> Painter:
    """The painter of a model's folder, with the autoencoder and the text encoder beside it, which it was trained on."""
    return Painter(
        load_network(model, device).eval(),
        load_autoencoder(model.parent / paths.AUTOENCODER.name, device),
        load_text_encoder(model.parent / paths.TEXT_ENCODER.name, device),
        params,
        device,
    )


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents_BCHW: Tensor) -> Pictures:
    """Pictures (B, height, width, 3) of latents, clamped to [-1, 1] and rounded to 8 bits."""
    pictures_B3HW = autoencoder.decode(latents_BCHW.float())
    levels = ((pictures_B3HW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

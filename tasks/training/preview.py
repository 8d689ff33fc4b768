"""Pictures of a network while it trains: every `preview_every` steps a sheet of fixed prompts and noise, in MLflow.

The prompts are the captions of the first held-out samples. Their text embeddings are in the encoded data, so the text
encoder is not needed. The decoder is that of `outputs/autoencoder`, which has made the latents. It is no input in the
table of stages, since no output depends on it: without it there are no pictures, and one line says so. Nor is this
module among the code that a stage depends on (`tasks.runtime.code_digest`).

The noise of a picture depends on the seed and its place on the sheet alone. Nothing here draws from torch's generator,
so a training writes the same bytes with and without pictures.

Shapes: P pictures of a sheet, B of them in a batch, C latent channels, H and W of a latent, T text tokens, E caption
channels.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from model.network import Sana
from model.sampler import sample
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive, row_generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.stage_models import loading_models
from tasks.params.training_params import Training
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.tracking.sample_sheet import picture_sheet
from tasks.training.drawing_in_training import OneByOneDecoder, pictures_at_once, uncompiled
from tasks.training.training_batch import normal_numbers

PICTURES = 12
"""Pictures of a sheet, which are two of its rows."""
SIDE = 128
"""Pixels of a picture's side on the sheet."""
KEY = "preview"
"""The name of the sheets in MLflow."""
PROMPTS = "preview_prompts.txt"
"""The name in MLflow of the file that has the prompts, one a line, in the order of the pictures."""


class Preview:
    """Draws sheets of pictures during one training. `network` must have its averaged weights when `draw` is called."""

    def __init__(
        self, context: Context, network: Sana, heldout: EncodedDataset, training: Training, is_sharded: bool
    ) -> None:
        """Note what is drawn. If pictures are asked for and cannot be drawn, one line says why, and none are due."""
        self.context, self.network, self.heldout = context, network, heldout
        self.every = training.preview_every
        self.rows = heldout.shape_groups[0][:PICTURES]  # the pictures of a batch have one size
        if 0 < self.every <= training.steps and (why := self._obstacle(is_sharded)):
            self._stop(why)

    def due(self, step: int) -> bool:
        """Whether a sheet is drawn after `step` updates."""
        return self.every > 0 and step > 0 and step % self.every == 0

    def draw(self, step: int) -> None:
        """Draw the sheet of this step and log it. A GPU without memory for it gets one line, and no further sheet."""
        try:
            pictures = [picture for batch in self._batches() for picture in batch]
        except torch.OutOfMemoryError:
            self._stop("the GPU has no memory left for them")
            return
        with TemporaryDirectory() as folder:
            sheet = Path(folder) / f"{KEY}.png"
            picture_sheet(pictures, SIDE).save(sheet)
            self.context.tracker.log_image(KEY, sheet, step)

    @cached_property
    def decoder(self) -> OneByOneDecoder:
        """The autoencoder's decoder, loaded when the first sheet is drawn. The prompts are logged with it."""
        from model.autoencoder import load_autoencoder  # takes seconds, and diffusers, which a GPU day may lack

        captions = self.heldout.captions
        with TemporaryDirectory() as folder:
            prompts = Path(folder) / PROMPTS
            prompts.write_text("".join(" ".join(captions[row].split()) + "\n" for row in self.rows), encoding="utf-8")
            self.context.tracker.log_file(prompts)
        with loading_models():
            return OneByOneDecoder(load_autoencoder(paths.AUTOENCODER, self.context.device))

    @torch.no_grad()
    def _batches(self) -> Iterator[np.ndarray]:
        """The pictures (B, height, width, 3), uint8, batch after batch."""
        params, device = self.context.params, self.context.device
        seed, size = derive(params.compute.seed, KEY), self._batch_size()
        for start in range(0, len(self.rows), size):
            batch = self.heldout.batch(self.rows[start : start + size])
            count = len(batch.latents_BCHW)
            random_B = [row_generator(seed, 0, start + place) for place in range(count)]
            noise_BCHW = normal_numbers(random_B, batch.latents_BCHW.shape[1:])
            null_1TE = self.heldout.null_text[None].to(device)
            with autocast(device, params.compute.dtype), uncompiled(params.compute.compile):
                text = self.network.encode_text(batch.text_BTE.to(device), batch.mask_BT.to(device))
                null = self.network.encode_text(null_1TE, torch.ones(null_1TE.shape[:2], dtype=bool, device=device))
                latents_BCHW = sample(
                    self.network,
                    noise_BCHW.to(device),
                    text,
                    null.index(torch.zeros(count, dtype=torch.long, device=device)),
                    sampler=params.sampling.sampler,
                    steps=params.sampling.steps,
                    guidance=params.sampling.guidance,
                    flow_shift=params.diffusion.flow_shift,
                )
            yield self.decoder.decode_pixels(latents_BCHW)

    def _batch_size(self) -> int:
        """Pictures of a batch."""
        config = self.network.config
        height, width = self.heldout.batch(self.rows[:1]).latents_BCHW.shape[-2:]
        tokens = max(self.heldout.longest_text, len(self.heldout.null_text))
        most = self.context.params.sampling.batch_size
        return pictures_at_once(config, height * width // config.patch_size**2, tokens, most)

    def _obstacle(self, is_sharded: bool) -> str | None:
        """Why no pictures can be drawn, or None."""
        if is_sharded:
            return "the parameters are sharded, and drawing would need all ranks"
        if not (paths.AUTOENCODER / "config.json").is_file():
            return f"{paths.AUTOENCODER} has no autoencoder to decode them: run the stage autoencoder"
        return None

    def _stop(self, why: str) -> None:
        print(f"{self.context.name}: no pictures while it trains (preview_every): {why}", flush=True)
        self.every = 0

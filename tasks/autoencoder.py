"""Stage `autoencoder`: the autoencoder whose latents the diffusion model is trained on.

With `autoencoder.path` it takes over that diffusers folder. Without a path it trains a small `AutoencoderDC` on the
pictures of the shards in about a minute, and sets the scaling factor that gives its latents unit variance.

The training differs from DC-AE's, which uses L1, perceptual and adversarial losses on exact latents. Here the loss is
the squared error of pictures decoded from latents with some noise, because sampled latents are never exact. To it comes
a penalty on the mean of each latent channel. A scaling factor cannot remove such a mean, and the diffusion model would
have to learn it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.autoencoder import Autoencoder, build_autoencoder, load_autoencoder
from tasks.computing.seeds import derive
from tasks.data.aspect_buckets import STEPS
from tasks.data.picture_dataset import PictureDataset, to_unit_range
from tasks.data.picture_files import encode_png
from tasks.data.published_files import copy_files, published_path
from tasks.data.shards import SPLITS
from tasks.params.experiment_params import Params
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.training.autoencoder_loss import EVALUATION_BATCH, SCALE_SAMPLES, SHOWN_PICTURES, reconstruction_loss
from tasks.training.short_training import fit

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")


def run(context: Context) -> Metrics:
    """Write the autoencoder and its reconstructions of held-out pictures; returns their PSNR, among others."""
    chosen = context.params.autoencoder
    heldout = PictureDataset(paths.SHARDS, "heldout")
    if chosen.path is None:
        autoencoder, metrics = train(context, heldout)
        autoencoder.save(context.out)
    else:
        folder = published_path(chosen.path)
        autoencoder, metrics = load(folder, context.device), {}
        copy_files(folder, context.out, FILES)
    check_sizes(autoencoder)
    context.tracker.log_image("reconstructions", draw_reconstructions(autoencoder, heldout, context.out))
    return {**metrics, "heldout_psnr": psnr(autoencoder, heldout), "downsampling": autoencoder.downsampling}


def load(folder: Path, device: str) -> Autoencoder:
    """The autoencoder in a folder that params.yaml names. Raises UserError if it holds none."""
    try:
        return load_autoencoder(folder, device)
    except ValueError as error:
        raise UserError(f"params.yaml: autoencoder.path: {error}") from None


def train(context: Context, heldout: PictureDataset) -> tuple[Autoencoder, Metrics]:
    """A small autoencoder trained on the shards, and metrics: its PSNR before training, and its scaling factor."""
    params = context.params
    chosen, seed = params.autoencoder, params.compute.seed
    pictures = PictureDataset(paths.SHARDS, "train")
    torch.manual_seed(derive(seed, "autoencoder", "weights"))
    autoencoder = build(params, context.device)
    check_sizes(autoencoder)
    untrained = psnr(autoencoder, heldout)
    loss = reconstruction_loss(autoencoder, pictures, context)
    fit(context, autoencoder.network.parameters(), loss, chosen.steps, chosen.learning_rate)
    autoencoder.network.eval().register_to_config(scaling_factor=scaling_factor(autoencoder, pictures))
    return autoencoder, {"untrained_psnr": untrained, "scaling_factor": autoencoder.network.config.scaling_factor}


def build(params: Params, device: str) -> Autoencoder:
    """The untrained autoencoder. Raises UserError if its channels do not fit each other."""
    chosen = params.autoencoder
    try:
        autoencoder = build_autoencoder(chosen.latent_channels, chosen.block_channels, chosen.layers_per_block)
    except ValueError as error:
        raise UserError(f"params.yaml: autoencoder.{error}") from None
    autoencoder.network.to(device)
    return autoencoder


def scaling_factor(autoencoder: Autoencoder, pictures: PictureDataset) -> float:
    """The inverse standard deviation of unscaled latents, rounded to four digits."""
    indices = np.arange(min(SCALE_SAMPLES, len(pictures)))
    latents = torch.cat([autoencoder.encode(batch).cpu().flatten() for batch in batches(pictures, indices)])
    return float(f"{1 / latents.double().std().item():.4g}")


def psnr(autoencoder: Autoencoder, pictures: PictureDataset) -> float:
    """The peak signal-to-noise ratio of the reconstructions, in decibels, from the mean error over all pictures."""
    error, count = 0.0, 0
    for batch in batches(pictures, np.arange(len(pictures))):
        difference = autoencoder.decode(autoencoder.encode(batch)).cpu() - batch
        error += difference.double().square().sum().item()
        count += difference.numel()
    mean_error = torch.tensor(error / count, dtype=torch.float64)
    return (10 * torch.log10(2.0**2 / mean_error)).item()  # the peak is 2: values span [-1, 1]


def draw_reconstructions(autoencoder: Autoencoder, pictures: PictureDataset, out: Path) -> Path:
    """Write `reconstructions.png`: the first held-out pictures in the upper row, their reconstructions below."""
    originals = next(batches(pictures, np.arange(min(SHOWN_PICTURES, len(pictures)))))
    reconstructions = autoencoder.decode(autoencoder.encode(originals)).cpu()
    rows_3HW = [torch.cat(list(row), dim=2) for row in (originals, reconstructions)]
    grid_HW3 = torch.cat(rows_3HW, dim=1).permute(1, 2, 0).add(1).mul(127.5).round().byte()
    path = out / "reconstructions.png"
    path.write_bytes(encode_png(grid_HW3.numpy()))
    return path


def check_sizes(autoencoder: Autoencoder) -> None:
    """Raises UserError if the autoencoder cannot encode pictures of the shards' sizes, of either split."""
    for pictures in (PictureDataset(paths.SHARDS, split) for split in SPLITS):
        step, instead = autoencoder.downsampling, ""
        if pictures.sized:  # the sides of aspect buckets are multiples of a sixteenth of image_size
            step, instead = STEPS * step, ", or shard.aspect_buckets to false"
        try:
            for height, width in pictures.sizes():
                autoencoder.check_size(height, width)
        except ValueError as error:
            advice = f"set shard.image_size in params.yaml to a multiple of {step}{instead}"
            raise UserError(f"{paths.SHARDS}: {error}; {advice}") from None


def batches(pictures: PictureDataset, indices: np.ndarray) -> Iterator[Tensor]:
    """The pictures at `indices` in batches (B, 3, H, W) of one size, in [-1, 1]."""
    for part in pictures.batches(indices, EVALUATION_BATCH):
        yield to_unit_range(pictures.pictures(part))


if __name__ == "__main__":
    stage_command("autoencoder", __doc__)

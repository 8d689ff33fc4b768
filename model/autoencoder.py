"""The deep-compression autoencoder (DC-AE, as in SANA section 2.1): it turns pictures into small latents and back.

It is diffusers' `AutoencoderDC` in diffusers' own folder format, so a published autoencoder loads as ours does.
`encode` multiplies latents by the folder's `scaling_factor`, which brings them to unit variance for diffusion.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor

from model.finite_numbers import check_finite_weights
from model.weights.folder_contents import contents_of

SLICE_PIXELS = 2**20
"""So many pixels pass the network at once, in whole pictures: a batch of large pictures is cut into slices.

The published DC-AE takes some 17 GB in float32 for so many pixels.
"""


class Autoencoder:
    """A frozen or trainable `AutoencoderDC`. Pictures are in [-1, 1] and latents have unit variance."""

    def __init__(self, network: AutoencoderDC) -> None:
        """Wrap `network` and make its weights channels-last, which is several times faster in bfloat16 on CPUs."""
        self.network = network.to(memory_format=torch.channels_last)

    @property
    def latent_channels(self) -> int:
        """How many channels a latent has."""
        return self.network.config.latent_channels

    @property
    def downsampling(self) -> int:
        """How many pixels of a picture's side stand behind one cell of the latent's side."""
        return self.network.spatial_compression_ratio

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return self.network.device

    @torch.no_grad()
    def encode(self, pictures_B3HW: Tensor) -> Tensor:
        """Latents (B, C, H/downsampling, W/downsampling), float32, of pictures in [-1, 1].

        Raises ValueError if a side is not a multiple of `downsampling`.
        """
        self.check_size(*pictures_B3HW.shape[-2:])
        slices = pictures_B3HW.split(slice_length(*pictures_B3HW.shape[-2:]))
        latents = [self.network.encoder(self._prepare(part)).float() for part in slices]
        return torch.cat(latents) * self.network.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, H·downsampling, W·downsampling), float32 in [-1, 1]."""
        unscaled = latents_BCHW.float() / self.network.config.scaling_factor
        slices = unscaled.split(slice_length(*(self.downsampling * side for side in latents_BCHW.shape[-2:])))
        return torch.cat([self.network.decoder(self._prepare(part)).float().clamp(-1, 1) for part in slices])

    @torch.no_grad()
    def decode_pixels(self, latents_BCHW: Tensor) -> np.ndarray:
        """Pictures (B, H·downsampling, W·downsampling, 3), uint8: clamped to [-1, 1] and rounded to 8 bits."""
        pictures_B3HW = self.decode(latents_BCHW.float())
        levels = ((pictures_B3HW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if pictures of this size have no latent."""
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"a picture of {height}x{width} pixels has no latent: sides must be multiples of {self.downsampling}"
            )

    def save(self, folder: Path) -> None:
        """Write diffusers' folder: `config.json` and safetensors. The same autoencoder gives the same bytes."""
        # `from_pretrained` leaves the path of its folder in the config, and the bytes would depend on it.
        self.network.register_to_config(_name_or_path="")
        self.network.save_pretrained(folder, safe_serialization=True)

    def _prepare(self, batch: Tensor) -> Tensor:
        """The batch as the network needs it: on its device, in its dtype, channels-last."""
        return batch.to(self.device, self.network.dtype, memory_format=torch.channels_last)


def slice_length(height: int, width: int) -> int:
    """How many pictures of this size pass the network at once: at least one."""
    return max(1, SLICE_PIXELS // (height * width))


def build_autoencoder(latent_channels: int, block_channels: tuple[int, ...], layers_per_block: int) -> Autoencoder:
    """An untrained autoencoder with `block_channels[i]` channels at 1/2^(i+1) of the picture's side.

    As in the published f64 and f128 autoencoders there are no layers at full resolution, where they cost most. All
    blocks are convolutional (`ResBlock`); in the published autoencoders the blocks above 1/8 are. Raises ValueError if
    the channels do not fit DC-AE's parameter-free shortcuts, which average or repeat channels.
    """
    _check_channels(latent_channels, block_channels)
    # The first level, at full resolution, has no layers. diffusers ignores its channels but wants a number.
    channels = (block_channels[0], *block_channels)
    layers = (0,) + (layers_per_block,) * len(block_channels)
    no_attention = ((),) * len(channels)
    network = AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=no_attention,
        decoder_qkv_multiscales=no_attention,
    )
    return Autoencoder(network)


def load_autoencoder(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Autoencoder:
    """The frozen autoencoder of a folder in diffusers' format, ours or a published one. The network is never asked.

    Raises ValueError that names the folder if it holds no `AutoencoderDC`, lacks some of its weights, or has one that
    is not finite.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no AutoencoderDC: config.json is missing, there is {contents_of(folder)}")
    try:
        config = AutoencoderDC.load_config(folder, local_files_only=True)
        if config.get("_class_name") != AutoencoderDC.__name__:
            raise ValueError(f"its class is {config.get('_class_name')}")
        network, report = AutoencoderDC.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} holds no AutoencoderDC: {reason} (there is {contents_of(folder)})") from None
    # diffusers does not refuse a folder that lacks weights.
    if missing := sorted(report["missing_keys"]):
        unknown = sorted(report["unexpected_keys"])
        others = f", and has {len(unknown)} that it does not know, {unknown[0]} first" if unknown else ""
        raise ValueError(f"{folder} lacks {len(missing)} weights of its autoencoder, {missing[0]} first{others}")
    check_finite_weights(network.state_dict(), folder)
    return Autoencoder(network.to(device).eval().requires_grad_(False))


def _check_channels(latent_channels: int, block_channels: tuple[int, ...]) -> None:
    """Raise ValueError unless every shortcut of DC-AE averages or repeats a whole number of channels."""
    if block_channels[-1] % latent_channels:
        raise ValueError(
            f"block_channels end in {block_channels[-1]}, which is no multiple of latent_channels {latent_channels}"
        )
    if block_channels[0] % 4:
        raise ValueError(f"block_channels begin with {block_channels[0]}, which is no multiple of 4")
    for upper, lower in pairwise(block_channels):
        if (4 * upper) % lower or lower % 4:
            raise ValueError(
                f"block_channels {upper}, {lower} cannot follow each other: "
                f"{lower} must be a multiple of 4 that divides 4 times {upper}"
            )

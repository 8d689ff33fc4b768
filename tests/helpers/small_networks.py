"""Small networks and inputs that several test files use."""

import torch
from torch import Tensor

from model.network import NetworkConfig, Sana, TextContext


def small_network(depth: int, seed: int = 0) -> Sana:
    """A network of 16 channels in which every parameter, biases and norms included, has its own random value."""
    config = NetworkConfig(
        in_channels=3,
        hidden_size=16,
        depth=depth,
        linear_head_dim=8,
        cross_heads=2,
        mlp_ratio=2.5,
        patch_size=1,
        caption_channels=6,
        qk_norm=True,
        numerics="diffusers",
    )
    network, random = Sana(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=random)
    return network.eval()


def small_batch(batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (B, 3, 4, 4), noise of that shape, text (B, 5, 6) and its mask (B, 5), of unequal lengths."""
    random = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, batch, 3, 4, 4, generator=random)
    mask = torch.arange(5) < torch.arange(batch)[:, None] % 4 + 2
    return latents, noise, torch.randn(batch, 5, 6, generator=random), mask


def velocity(network: Sana, latents: Tensor, text: TextContext) -> Tensor:
    """The network's output at times spread over the range."""
    return network(latents, torch.linspace(50, 950, len(latents)), text)

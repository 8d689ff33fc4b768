"""Block importance: how much a block turns its tokens (SANA-1.5 section 2.4).

BI_i = 1 - E cos(x_i, x_{i+1}), where the tokens x_i enter block i and the tokens x_{i+1} leave it. The cosine is taken
over a token's channels, the expectation over tokens, prompts and noise levels.

The paper does not state its grid of noise levels, its guidance or what the latents are. Here the caller gives the grid,
latents are noised to exactly the level that the network is told, and there is no guidance: every prompt counts once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.flow_matching import TIMESTEPS, add_noise
from model.network import Sana, TextContext


@torch.no_grad()
def block_importance(
    network: Sana, latents_BCHW: Tensor, noise_BCHW: Tensor, text: TextContext, times: Sequence[float]
) -> Tensor:
    """Importance of every block at every noise level, averaged over batch and tokens.

    `times` are noise levels in [0, 1]. The result is (times, blocks), float64, on the CPU.
    """
    rows = []
    for time in times:
        sigma_B = torch.full((len(latents_BCHW),), time, device=latents_BCHW.device)
        with _cosines(network.blocks) as cosines:
            network(add_noise(latents_BCHW, noise_BCHW, sigma_B), sigma_B * TIMESTEPS, text)
        rows.append(1 - torch.stack(cosines).cpu())
    return torch.stack(rows)


@contextmanager
def _cosines(blocks: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Collect, during a forward pass, the mean cosine between the tokens that enter and that leave each block."""
    collected: list[Tensor] = []

    def note(_block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook."""
        # In float64, since most blocks turn their tokens little, and then 1 - cos loses digits.
        collected.append(F.cosine_similarity(inputs[0].double(), output.double(), dim=-1).mean())

    hooks = [block.register_forward_hook(note) for block in blocks]
    try:
        yield collected
    finally:
        for hook in hooks:
            hook.remove()

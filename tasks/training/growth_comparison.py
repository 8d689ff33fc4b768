"""Which ways of growing are compared, and the held-out batch on which their outputs are compared."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.flow_matching import TIMESTEPS, add_noise
from model.growth import STRATEGIES, Strategy, drop_count
from model.network import Sana
from tasks.computing.precision import autocast
from tasks.computing.seeds import generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.network_params import Grow

PROBES = 128  # held-out samples on which functions are compared


@dataclass(frozen=True)
class Probe:
    """A fixed held-out batch with its noise, at noise levels spread evenly over (0, 1)."""

    noised_BCHW: Tensor
    timesteps_B: Tensor
    text_BTE: Tensor
    mask_BT: Tensor

    @torch.no_grad()
    def velocity(self, network: Sana, dtype: str) -> Tensor:
        """The network's output (B, C, H, W) for the batch."""
        with autocast(self.noised_BCHW.device.type, dtype):
            text = network.embed_text(self.text_BTE, self.mask_BT)
            return network(self.noised_BCHW, self.timesteps_B, text).float()


def read_probe(heldout: EncodedDataset, seed: int, device: str) -> Probe:
    """The probe: the first samples of a held-out split, with noise from the experiment's seed."""
    indices = max(heldout.shape_groups, key=len)[:PROBES]  # a batch has one shape: the commonest
    batch, count = heldout.batch(indices), len(indices)
    noise_BCHW = torch.randn(batch.latents_BCHW.shape, generator=generator(seed, "grow", "probe noise"))
    sigma_B = (torch.arange(count) + 0.5) / count
    noised_BCHW = add_noise(batch.latents_BCHW, noise_BCHW, sigma_B)
    tensors = noised_BCHW, sigma_B * TIMESTEPS, batch.text_BTE, batch.mask_BT
    return Probe(*(tensor.to(device) for tensor in tensors))


def ways_to_grow(depth: int, chosen: Grow) -> list[tuple[Strategy, int]]:
    """Strategies and numbers of dropped blocks that are compared; the chosen one alone where no block is new."""
    drop = drop_count(depth, chosen.drop_share)
    if chosen.depth == depth and drop == 0:
        return [(chosen.strategy, 0)]
    return [(strategy, n) for strategy in STRATEGIES for n in sorted({0, min(1, depth - 1), drop})]

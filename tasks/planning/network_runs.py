"""The memory of the network's passes without gradients, counted by running the project's own code without data.

The network's operations have formulas (`model.network_flops`), and so has the memory of its training
(`training_memory`). Without gradients the memory is the most that is alive at the same time. All code takes its path
for the CPU: attention stores its probabilities, which the fused kernels of a GPU do not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import torch

from model.block_importance import block_importance
from model.network import NetworkConfig, Sana
from model.sampler import sample
from tasks.computing.precision import autocast
from tasks.params.experiment_params import Params
from tasks.planning.count_without_data import count_peak_bytes, shapes_alone, without_data
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch

DEVICE = "cpu"


@dataclass(frozen=True, eq=False)
class NetworkRuns:
    """The passes of an experiment's network at any depth. Peaks are bytes beside the weights, with autocast's copies.

    Every block adds the same to a peak, so networks of one and of two blocks give the peak of any depth.
    """

    params: Params
    config: NetworkConfig
    latent_side: int

    @property
    def latent(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        return self.config.in_channels, self.latent_side, self.latent_side

    def loss_peak(self, depth: int, samples: int, text_tokens: int) -> int:
        """The peak of a held-out loss."""
        return _peak(self, NetworkRuns._loss, depth, samples, text_tokens)

    def importance_peak(self, depth: int, samples: int, text_tokens: int) -> int:
        """The peak of measuring block importance on a batch, at one noise level."""
        return _peak(self, NetworkRuns._importance, depth, samples, text_tokens)

    def drawing_peak(self, depth: int, samples: int, text_tokens: int) -> int:
        """The peak of the solver on a batch of pictures of one prompt."""
        return _peak(self, NetworkRuns._drawing, depth, samples, text_tokens)

    def _loss(self, network: Sana, samples: int, text_tokens: int) -> None:
        FlowMatchingLoss(network)(self.batch(samples, text_tokens))

    def _importance(self, network: Sana, samples: int, text_tokens: int) -> None:
        batch = self.batch(samples, text_tokens)
        text = network.encode_text(batch.text_BTE, batch.mask_BT)
        block_importance(network, batch.latents_BCHW, batch.noise_BCHW, text, [0.5])

    def _drawing(self, network: Sana, samples: int, text_tokens: int) -> None:
        sampling = self.params.sampling
        batch = self.batch(2, text_tokens)  # the prompt and the empty one
        with shapes_alone():
            noise = torch.empty(samples, *self.latent)
        context = network.encode_text(batch.text_BTE, batch.mask_BT)
        rows = torch.zeros(samples, dtype=torch.long)
        sample(
            network,
            noise,
            context.index(rows),
            context.index(rows + 1),
            sampler=sampling.sampler,
            steps=3,  # after three, the solver holds as much as it ever does
            guidance=sampling.guidance,
            flow_shift=self.params.diffusion.flow_shift,
        )

    @cached_property
    def shallow(self) -> tuple[Sana, Sana]:
        """Networks of one block and of two, without data."""
        first, second = (without_data(lambda n=n: Sana(replace(self.config, depth=n))) for n in (1, 2))
        return first, second

    def batch(self, samples: int, text_tokens: int) -> NoisedBatch:
        """A batch without data."""
        with shapes_alone():
            latents, noise = (torch.empty(samples, *self.latent) for _ in range(2))
            text = torch.empty(samples, text_tokens, self.config.caption_channels)
            mask = torch.empty(samples, text_tokens, dtype=torch.bool)
            return NoisedBatch(latents, noise, torch.empty(samples), text, mask)


Pass = Callable[[NetworkRuns, Sana, int, int], None]


def _peak(runs: NetworkRuns, run: Pass, depth: int, samples: int, text_tokens: int) -> int:
    one, two = _shallow_peaks(runs, run, samples, text_tokens)
    return one + (depth - 1) * (two - one)


@cache
def _shallow_peaks(runs: NetworkRuns, run: Pass, samples: int, text_tokens: int) -> tuple[int, ...]:
    """The peaks of networks of one block and of two, with the batch."""
    with torch.no_grad(), autocast(DEVICE, runs.params.compute.dtype):
        return tuple(count_peak_bytes(partial(run, runs, network, samples, text_tokens)) for network in runs.shallow)

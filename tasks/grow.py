"""Stage `grow`: initialises the deep model from the small one, and reports where each way of growing would start.

If `grow.depth` is `pretrain.depth` and no block is dropped, the small model is passed on as it is.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from model.checkpoint import load_network, save_network
from model.flow_matching import TIMESTEPS, add_noise
from model.growth import STRATEGIES, Strategy, drop_count, function_distance, grow
from model.network import Sana, parameter_count
from tasks.computing.precision import autocast
from tasks.computing.seeds import generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.params.network import Grow
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_json
from tasks.training.heldout_loss import heldout_loss

PROBES = 128  # held-out samples on which functions are compared


@dataclass(frozen=True)
class Start:
    """The point from which training starts after one way of growing."""

    strategy: Strategy
    drop: int  # how many of the last blocks are dropped before growing
    function_distance: float  # from the small model, relative L2 of the velocity
    heldout_loss: float  # before any training


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
            text = network.encode_text(self.text_BTE, self.mask_BT)
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


def run(context: Context) -> Metrics:
    """Write the grown network and `growth.json`: every strategy's start, with 0, 1 and the chosen number dropped."""
    params, compute = context.params, context.params.compute
    small = load_network(paths.SMALL, context.device)
    heldout = EncodedDataset(paths.ENCODED, "heldout")
    probe = read_probe(heldout, compute.seed, context.device)
    small_velocity = probe.velocity(small, compute.dtype)

    def grown(strategy: Strategy, drop: int) -> Sana:
        random = generator(compute.seed, "grow", "new blocks")
        return grow(small, params.grow.depth, strategy, drop, params.grow.init_std, random)

    def loss(network: Sana) -> float:
        return heldout_loss(network, heldout, params.diffusion, compute.seed, context.device, compute.dtype)

    def start(strategy: Strategy, drop: int) -> Start:
        network = grown(strategy, drop)
        distance = function_distance(probe.velocity(network, compute.dtype), small_velocity)
        return Start(strategy, drop, distance, loss(network))

    drop = drop_count(small.config.depth, params.grow.drop_share)
    ways = ways_to_grow(small.config.depth, params.grow)
    starts = {way: start(*way) for way in ways}
    chosen = starts[params.grow.strategy, drop]
    write_json(
        context.out / "growth.json", {"chosen": asdict(chosen), "starts": [asdict(each) for each in starts.values()]}
    )
    network = grown(params.grow.strategy, drop)
    save_network(network, context.out)
    return {
        "function_distance": chosen.function_distance,
        "heldout_loss": chosen.heldout_loss,
        "heldout_loss_small": loss(small),
        "drop": drop,
        "depth": params.grow.depth,
        "parameters": parameter_count(network),
    }


if __name__ == "__main__":
    stage_command("grow", __doc__)

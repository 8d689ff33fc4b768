"""Stage `grow`: initialises the deep model from the small one, and reports where each way of growing would start.

If `grow.depth` is `pretrain.depth` and no block is dropped, the small model is passed on as it is.
"""

from dataclasses import asdict, dataclass

from model.checkpoint import load_network, save_network
from model.growth import Strategy, drop_count, function_distance, grow
from model.network import Sana, parameter_count
from tasks.computing.seeds import generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.stage_models import loading_models
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_json
from tasks.training.growth_comparison import read_probe, ways_to_grow
from tasks.training.heldout_loss import heldout_loss


@dataclass(frozen=True)
class Start:
    """The point from which training starts after one way of growing."""

    strategy: Strategy
    drop: int  # how many of the last blocks are dropped before growing
    function_distance: float  # from the small model, relative L2 of the velocity
    heldout_loss: float  # before any training


def run(context: Context) -> Metrics:
    """Write the grown network and `growth.json`: every strategy's start, with 0, 1 and the chosen number dropped."""
    params, compute = context.params, context.params.compute
    with loading_models():
        small = load_network(paths.SMALL, context.device)
    heldout = EncodedDataset(paths.ENCODED, "heldout")
    probe = read_probe(heldout, compute.seed, context.device)
    small_velocity = probe.velocity(small, compute.dtype)

    def grown(strategy: Strategy, drop: int) -> Sana:
        random = generator(compute.seed, "grow", "new blocks")
        return grow(small, params.grow.depth, strategy, drop, params.grow.init_std, random)

    def loss(network: Sana) -> float:
        measured = heldout_loss(network, heldout, params.diffusion, compute.seed, context.device, compute.dtype)
        return measured.value

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

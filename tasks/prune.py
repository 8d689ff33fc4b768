"""Stage `prune@D`: cuts the grown model to its D most important blocks, and compares that with other choices."""

from collections.abc import Sequence

from model.checkpoint import load_network, save_network
from model.network import parameter_count
from model.pruning import blocks_to_keep, prune_network
from tasks.computing.random_block_choices import random_choices
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.stage_models import loading_models
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import read_json, write_json
from tasks.training.heldout_loss import HeldoutLoss, heldout_loss


def run(context: Context, depth: int) -> Metrics:
    """Write the pruned network, and `pruning.json` with the blocks kept and the held-out loss of every choice."""
    params, compute = context.params, context.params.compute
    with loading_models():
        network = load_network(paths.GROWN, context.device)
    heldout = EncodedDataset(paths.ENCODED, "heldout")
    blocks = network.config.depth
    keep = blocks_to_keep(read_json(paths.IMPORTANCE / "importance.json")["mean"], depth)

    def loss(kept: Sequence[int]) -> HeldoutLoss:
        cut = prune_network(network, kept)
        return heldout_loss(cut, heldout, params.diffusion, compute.seed, context.device, compute.dtype)

    choices = random_choices(blocks, depth, params.prune.random_choices, compute.seed)
    chosen = loss(keep)
    losses = {
        "grown": loss(range(blocks)).value,
        "importance": chosen.value,
        "first_removed": loss(range(blocks - depth, blocks)).value,
        "last_removed": loss(range(depth)).value,
        "random": [loss(choice).value for choice in choices],
    }
    removed = sorted(set(range(blocks)) - set(keep))
    report = {"kept": keep, "removed": removed, "random_kept": choices, "heldout_loss": losses}
    write_json(context.out / "pruning.json", report)
    pruned = prune_network(network, keep)
    save_network(pruned, context.out)
    return {
        "heldout_loss": chosen.value,
        "heldout_loss_low": chosen.low,
        "heldout_loss_high": chosen.high,
        "heldout_loss_before": losses["grown"],
        "heldout_loss_first_removed": losses["first_removed"],
        "heldout_loss_last_removed": losses["last_removed"],
        "heldout_loss_random": sum(losses["random"]) / len(choices),
        "depth": depth,
        "parameters": parameter_count(pruned),
    }


if __name__ == "__main__":
    stage_command("prune", __doc__)

"""Stage `importance`: measures the importance of each block of the grown model, once for all cuts.

It is measured on `importance.prompts` held-out samples whose captions all differ, or on fewer if the held-out split has
fewer such captions. The stage then says so, and the number is among its metrics.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.block_importance import block_importance
from model.checkpoint import load_network
from model.network import Sana
from model.pruning import removal_order
from tasks.computing.precision import autocast
from tasks.computing.seeds import generator
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.stage_models import loading_models
from tasks.params.network_params import Importance
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import write_csv, write_json
from tasks.system.progress import progress


def run(context: Context) -> Metrics:
    """Write `importance.json` (scores by noise level and block, their mean and spread) and `importance.csv`."""
    chosen = context.params.importance
    heldout = EncodedDataset(paths.ENCODED, "heldout")
    indices = calibration_indices(heldout.captions, chosen.prompts)
    if len(indices) < chosen.prompts:
        print(
            f"importance: different captions held out: {len(indices)}, fewer than importance.prompts {chosen.prompts}; "
            "measured on one sample of each",
            flush=True,
        )
    with loading_models():
        grown = load_network(paths.GROWN, context.device)
    scores = measure(grown, heldout, indices, chosen, context)
    mean, std = scores.mean(dim=0), scores.std(dim=0, correction=0)
    captions = [heldout.captions[i] for i in indices]
    report = {
        "times": chosen.times,
        "scores": scores.tolist(),  # (times, blocks)
        "mean": mean.tolist(),
        "std": std.tolist(),  # over times
        "removal_order": removal_order(mean.tolist()),
        "prompts": len(captions),
    }
    write_json(context.out / "importance.json", report)
    rows = [{"block": i, "importance": mean[i].item(), "std": std[i].item()} for i in range(len(mean))]
    write_csv(context.out / "importance.csv", ("block", "importance", "std"), rows)
    return {
        "lowest": mean.min().item(),
        "highest": mean.max().item(),
        "spread_over_times": (std.mean() / mean.mean()).item(),
        "prompts": report["prompts"],
    }


def calibration_indices(captions: Sequence[str], prompts: int) -> np.ndarray:
    """The indices, ascending, of `prompts` held-out samples whose captions all differ, spread evenly over the split.

    If the split has fewer different captions, one sample of each is taken.
    """
    first = {caption: index for index, caption in reversed([*enumerate(captions)])}  # the lowest index stays
    distinct = np.sort(np.array([*first.values()]))
    count = min(prompts, len(distinct))
    return distinct[np.arange(count) * len(distinct) // count]


def measure(
    network: Sana, heldout: EncodedDataset, indices: np.ndarray, chosen: Importance, context: Context
) -> Tensor:
    """Importance (times, blocks), float64: the mean over the chosen samples. A sample has one noise for all times.

    Raises UserError that names the samples if they, or their importance, are not finite.
    """
    random = generator(context.params.compute.seed, "importance", "noise")
    total = torch.zeros(len(chosen.times), network.config.depth, dtype=torch.float64)
    with progress(context.name, len(indices)) as meter:
        for part in heldout.batches(indices, chosen.batch_size):
            batch = heldout.batch(part)
            noise_BCHW = torch.randn(batch.latents_BCHW.shape, generator=random)
            with torch.no_grad(), autocast(context.device, context.params.compute.dtype):
                text = network.encode_text(batch.text_BTE.to(context.device), batch.mask_BT.to(context.device))
                latents, noise = batch.latents_BCHW.to(context.device), noise_BCHW.to(context.device)
                total += len(part) * block_importance(network, latents, noise, text, chosen.times)
            meter.advance(len(part))
            if not total.isfinite().all():
                raise UserError(
                    f"{heldout.place(int(part[0]))} or one of the {len(part)} samples of its batch gives an importance "
                    "that is not finite, though their numbers and the weights are: the network's values become too "
                    "large; train it again with a lower learning rate, or with compute.dtype float32"
                )
    return total / len(indices)


if __name__ == "__main__":
    stage_command("importance", __doc__)

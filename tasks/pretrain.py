"""Stage `pretrain`: the small model, trained on the cached latents and captions.

It starts from random weights or, with `pretrain.path`, from published weights: a `.pth`, a safetensors file or a
diffusers folder. If `pretrain.steps` is 0, these weights are the small model as they are.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from model.network import NetworkConfig, Sana
from model.numerics import CheckpointKey
from model.surgery import with_qk_norm
from model.weights.fit_to_network import load_weights
from tasks.computing import ranks
from tasks.computing.seeds import derive
from tasks.data.encoded_samples import EncodedDataset
from tasks.data.published_files import content_digest, published_path
from tasks.evaluation.short_evaluation import ShortEvaluation
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import write_json
from tasks.training.initial_network import initial_network
from tasks.training.network_config import network_config
from tasks.training.training_loop import Trainer

SETTINGS = {"in_channels": "latent channels", "caption_channels": "caption channels", "depth": "pretrain.depth"}
"""How a message names the fields of a configuration that are not keys of the section `network`."""


def run(context: Context) -> Metrics:
    """Train the network of `pretrain.depth` blocks from random or published weights; 0 steps leave them unchanged.

    Published weights are put on record beside the checkpoint: `start.json` has their path, their digest, and whether QK
    norm was added.
    """
    params, path = context.params, context.params.pretrain.path
    folder = paths.OUTPUTS / params.pretrain.data
    encoded = EncodedDataset(folder, "train")
    channels = encoded.latent_shape[0], encoded.null_text.shape[1]
    config = network_config(params.network, params.pretrain.depth, *channels)

    def make() -> Sana:
        if path is None:
            torch.manual_seed(derive(params.compute.seed, "initial weights"))
            return Sana(config, params.network.initialisation)
        place = published_path(path)
        network, added = published_network(place, config, params.pretrain.checkpoint_key)
        start = {"path": path, "sha256": content_digest(place), "qk_norm_added": added}
        if ranks.rank() == 0:
            write_json(context.out / paths.START.name, start)
        return network

    with initial_network(context, make) as network:
        scores = ShortEvaluation(context, params.pretrain)
        trainer = Trainer(context, network, folder, params.pretrain, scores=scores)
    return trainer.run()


def published_network(path: Path, config: NetworkConfig, which: CheckpointKey) -> tuple[Sana, bool]:
    """A network of `config` with published weights, and whether QK norm was added, which SANA-1.0's weights lack.

    An added norm has weights of 1 and changes what the network computes, until training adapts to it. Raises UserError
    listing every difference from `config`.
    """
    try:
        heads = config.linear_head_dim, config.cross_heads
        network = load_weights(path, config.numerics, which, heads)
    except ValueError as error:
        raise UserError(f"params.yaml: pretrain.path: {' '.join(str(error).split())}") from None
    added = config.qk_norm and not network.config.qk_norm
    if added:
        print(f"pretrain: {path} has no QK norm: added to all {network.config.depth} blocks, weights 1", flush=True)
        network = with_qk_norm(network)
    if wrong := differences(network.config, config):
        raise UserError(
            f"{path} has {'; '.join(wrong)}: set these in params.yaml, or choose the encoders it was trained with"
        )
    return network, added


def differences(found: NetworkConfig, wanted: NetworkConfig) -> list[str]:
    """Every field in which a network differs from the experiment's, such as `network.hidden_size 64, not 256`."""
    # Two ratios that give the same whole number of inner channels are the same network.
    same_width = int(found.mlp_ratio * found.hidden_size) == int(wanted.mlp_ratio * wanted.hidden_size)
    known = asdict(found) | ({"mlp_ratio": wanted.mlp_ratio} if same_width else {})
    return [
        f"{SETTINGS.get(name, f'network.{name}')} {known[name]}, not {value}"
        for name, value in asdict(wanted).items()
        if known[name] != value
    ]


if __name__ == "__main__":
    stage_command("pretrain", __doc__)

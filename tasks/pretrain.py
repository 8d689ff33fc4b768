"""Stage `pretrain`: the small model, trained from scratch on the cached latents and captions.

With `pretrain.path` it takes over published weights instead: a `.pth`, a safetensors file or a diffusers folder.
"""

from pathlib import Path

import torch

from model.checkpoint import save_network
from model.network import NetworkConfig, Sana, parameter_count
from model.weights.fitting import load_weights
from tasks import layout
from tasks.data.encoded import EncodedDataset
from tasks.errors import UserError
from tasks.external import own_path
from tasks.files import write_csv
from tasks.params import Network, Params
from tasks.seeds import derive
from tasks.stage import TRAINING_SECTIONS, Context, Metrics, Stage, run_main
from tasks.training.evaluation import heldout_loss
from tasks.training.loop import Trainer


def network_config(shape: Network, depth: int, in_channels: int, caption_channels: int) -> NetworkConfig:
    """The network of params.yaml at a depth, between encoders of these channels."""
    return NetworkConfig(
        in_channels=in_channels,
        hidden_size=shape.hidden_size,
        depth=depth,
        linear_head_dim=shape.linear_head_dim,
        cross_heads=shape.cross_heads,
        mlp_ratio=shape.mlp_ratio,
        patch_size=shape.patch_size,
        caption_channels=caption_channels,
        qk_norm=shape.qk_norm,
        numerics=shape.numerics,
    )


def new_network(params: Params, depth: int) -> Sana:
    """A network of `depth` blocks with initial weights drawn from the experiment's seed."""
    encoded = EncodedDataset(layout.ENCODED, "train")
    channels = encoded.latent_shape[0], encoded.null_text.shape[1]
    torch.manual_seed(derive(params.compute.seed, "initial weights"))
    return Sana(network_config(params.network, depth, *channels))


def pretrain(context: Context) -> Metrics:
    """Train a new network of `pretrain.depth` blocks, or take over the one at `pretrain.path`."""
    training = context.params.pretrain
    if training.path is not None:
        return adopt(context, own_path(training.path))
    return Trainer(context, new_network(context.params, training.depth), layout.ENCODED, training).run()


def adopt(context: Context, path: Path) -> Metrics:
    """Published weights as the small model, with their held-out loss. Raises UserError naming what does not fit."""
    params, compute = context.params, context.params.compute
    heads = params.network.linear_head_dim, params.network.cross_heads
    try:
        network = load_weights(path, params.network.numerics, heads=heads)
    except ValueError as error:
        raise UserError(f"params.yaml: pretrain.path: {' '.join(str(error).split())}") from None
    heldout = EncodedDataset(layout.ENCODED, "heldout")
    found, config = network.config, params.pretrain
    needed = {"blocks": config.depth, "latent channels": heldout.latent_shape[0]}
    needed["caption channels"] = heldout.null_text.shape[1]
    has = {"blocks": found.depth, "latent channels": found.in_channels, "caption channels": found.caption_channels}
    if wrong := [f"{has[what]} {what}, not {needed[what]}" for what in needed if has[what] != needed[what]]:
        raise UserError(
            f"{path} has {'; '.join(wrong)}: set pretrain.depth, or choose the encoders it was trained with"
        )
    network.to(context.device).eval()
    loss = heldout_loss(network, heldout, params.diffusion, compute.seed, context.device, compute.dtype)
    save_network(network, context.out)
    write_csv(context.out / "heldout.csv", [{"step": 0, "samples": 0, "heldout_loss": loss}])
    return {
        "heldout_loss": loss,
        "heldout_loss_before": loss,
        "depth": found.depth,
        "parameters": parameter_count(network),
    }


def stage(_params: Params) -> Stage:
    """The stage's record."""
    return Stage(
        name="pretrain",
        run=pretrain,
        inputs=(layout.ENCODED,),
        out=layout.SMALL,
        sections=(*TRAINING_SECTIONS, "compute.threads", "network", "pretrain"),
    )


if __name__ == "__main__":
    run_main(stage, "pretrain", __doc__)

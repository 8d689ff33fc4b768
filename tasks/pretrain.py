"""Stage `pretrain`: trains the small model from scratch on the cached latents and captions."""

import torch

from model.network import NetworkConfig, Sana
from tasks import layout
from tasks.data.encoded import EncodedDataset
from tasks.params import Params
from tasks.seeds import derive
from tasks.stage import TRAINING_SECTIONS, Context, Metrics, Stage, run_main
from tasks.training.loop import Trainer


def new_network(params: Params, depth: int) -> Sana:
    """A network of `depth` blocks with initial weights drawn from the experiment's seed."""
    encoded = EncodedDataset(layout.ENCODED, "train")
    shape = params.network
    config = NetworkConfig(
        in_channels=encoded.latent_shape[0],
        hidden_size=shape.hidden_size,
        depth=depth,
        linear_head_dim=shape.linear_head_dim,
        cross_heads=shape.cross_heads,
        mlp_ratio=shape.mlp_ratio,
        patch_size=shape.patch_size,
        caption_channels=encoded.null_text.shape[1],
        qk_norm=shape.qk_norm,
        numerics=shape.numerics,
    )
    torch.manual_seed(derive(params.compute.seed, "initial weights"))
    return Sana(config)


def pretrain(context: Context) -> Metrics:
    """Train a new network of `pretrain.depth` blocks."""
    training = context.params.pretrain
    return Trainer(context, new_network(context.params, training.depth), layout.ENCODED, training).run()


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

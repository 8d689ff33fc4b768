"""Export to diffusers: a network of any depth becomes a complete `SanaPipeline` folder."""

from pathlib import Path

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)

from model.autoencoder import Autoencoder
from model.network import NetworkConfig, Sana
from model.sampler import SamplerName
from model.text_encoder import TextEncoder
from model.weights.weight_names import to_diffusers

Scheduler = DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler


def export_pipeline(
    network: Sana,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    out: Path,
    *,
    sampler: SamplerName,
    flow_shift: float,
    sample_size: int,
) -> None:
    """Write the folder that `SanaPipeline.from_pretrained` reads; `sample_size` is the side of a latent.

    diffusers computes by its own numerics, whatever the network was trained with. So pictures of a network under
    `nvlabs` differ a little from ours.
    """
    pipeline = SanaPipeline(
        tokenizer=text_encoder.tokenizer,
        text_encoder=text_encoder.model.get_decoder(),  # the pipeline has no use for the vocabulary head
        vae=autoencoder.network,
        transformer=to_transformer(network, sample_size),
        scheduler=scheduler(sampler, flow_shift),
    )
    pipeline.save_pretrained(out, safe_serialization=True)


def to_transformer(network: Sana, sample_size: int) -> SanaTransformer2DModel:
    """diffusers' network with the same weights. Tensors that both store in the same shape are shared, not copied."""
    with torch.device("meta"):  # no memory for weights that are replaced at once
        transformer = SanaTransformer2DModel(**transformer_config(network.config, sample_size))
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    transformer.load_state_dict(to_diffusers(weights), assign=True)
    return transformer.eval()


def transformer_config(config: NetworkConfig, sample_size: int) -> dict[str, object]:
    """The arguments of diffusers' class that stand for a network's configuration."""
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "num_attention_heads": config.hidden_size // config.linear_head_dim,
        "attention_head_dim": config.linear_head_dim,
        "num_layers": config.depth,
        "num_cross_attention_heads": config.cross_heads,
        "cross_attention_head_dim": config.hidden_size // config.cross_heads,
        "cross_attention_dim": config.hidden_size,
        "caption_channels": config.caption_channels,
        "mlp_ratio": config.mlp_ratio,
        "patch_size": config.patch_size,
        "sample_size": sample_size,
        "qk_norm": "rms_norm_across_heads" if config.qk_norm else None,
    }


def scheduler(sampler: SamplerName, flow_shift: float) -> Scheduler:
    """The scheduler of diffusers that makes the same steps as our solver."""
    if sampler == "flow_euler":
        return FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, final_sigmas_type="zero"
    )

"""The network is SANA-1.5's: equal to diffusers' class with the same weights, and of the published sizes."""

import pytest
import torch
from diffusers import SanaTransformer2DModel

from model.layers import LINEAR_ATTENTION_EPS, QK_NORM_EPS_CROSS, linear_attention
from model.network import NetworkConfig, Sana, concatenate, parameter_count

TOP_LEVEL = {
    "patch_embed.proj": "x_embedder.proj",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.linear": "t_block.1",
    "proj_out": "final_layer.linear",
    "caption_norm": "attention_y_norm",
}
BLOCK = {
    "attn1.to_out.0": "attn.proj",
    "attn2.to_out.0": "cross_attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "ff.conv_inverted": "mlp.inverted_conv.conv",
    "ff.conv_depth": "mlp.depth_conv.conv",
    "ff.conv_point": "mlp.point_conv.conv",
    "attn1.norm_q": "attn.q_norm",
    "attn1.norm_k": "attn.k_norm",
    "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm",
}


def tiny(qk_norm: bool = True, patch_size: int = 1) -> NetworkConfig:
    return NetworkConfig(8, 64, 2, 16, 4, 2.5, patch_size, 48, qk_norm)


def randomised(config: NetworkConfig) -> Sana:
    """A network whose every parameter is random, so that a dropped bias or a norm left at one shows."""
    torch.manual_seed(0)
    network = Sana(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        network.attention_y_norm.weight.add_(1)
    return network


def reference(network: Sana) -> SanaTransformer2DModel:
    """diffusers' network with the same weights, and with SANA's own epsilon in the cross-attention's norms."""
    config = network.config
    model = SanaTransformer2DModel(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        num_attention_heads=config.hidden_size // config.linear_head_dim,
        attention_head_dim=config.linear_head_dim,
        num_layers=config.depth,
        num_cross_attention_heads=config.cross_heads,
        cross_attention_head_dim=config.hidden_size // config.cross_heads,
        cross_attention_dim=config.hidden_size,
        caption_channels=config.caption_channels,
        mlp_ratio=config.mlp_ratio,
        sample_size=8,
        patch_size=config.patch_size,
        qk_norm="rms_norm_across_heads" if config.qk_norm else None,
    )
    ours, theirs = network.state_dict(), {}
    for target in model.state_dict():
        theirs[target] = ours_named(target, ours)
    model.load_state_dict(theirs)
    for block in model.transformer_blocks:
        for norm in (block.attn2.norm_q, block.attn2.norm_k):
            if norm is not None:
                norm.eps = QK_NORM_EPS_CROSS
    return model.eval()


def ours_named(target: str, ours: dict[str, torch.Tensor]) -> torch.Tensor:
    module, _, leaf = target.rpartition(".")
    if target == "scale_shift_table":
        return ours["final_layer.scale_shift_table"]
    if not module.startswith("transformer_blocks"):
        return ours[f"{TOP_LEVEL[module]}.{leaf}"]
    _, index, *rest = module.split(".")
    inner, block = ".".join(rest), f"blocks.{index}."
    if not inner:
        return ours[f"{block}{leaf}"]
    if inner.startswith("attn1.to_") and inner[-1] in "qkv":
        return ours[f"{block}attn.qkv.weight"].chunk(3)["qkv".index(inner[-1])]
    if inner in ("attn2.to_k", "attn2.to_v"):
        return ours[f"{block}cross_attn.kv_linear.{leaf}"].chunk(2)["kv".index(inner[-1])]
    return ours[f"{block}{BLOCK[inner]}.{leaf}"]


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_network_equals_diffusers_with_the_same_weights(qk_norm: bool, patch_size: int) -> None:
    network = randomised(tiny(qk_norm, patch_size))
    latents, timesteps = torch.randn(3, 8, 8, 6), torch.tensor([3.0, 500.0, 999.0])
    text, mask = torch.randn(3, 7, 48), torch.arange(7) < torch.tensor([[7], [4], [1]])
    with torch.no_grad():
        ours = network(latents, timesteps, network.encode_text(text, mask))
        theirs = reference(network)(
            latents, encoder_hidden_states=text, timestep=timesteps, encoder_attention_mask=mask.float()
        ).sample
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


@pytest.mark.parametrize(("depth", "count"), [(20, 1_604_641_952), (40, 3_163_233_952), (60, 4_721_825_952)])
def test_published_sizes_have_the_published_parameter_counts(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert parameter_count(Sana(NetworkConfig(32, 2240, depth, 32, 20, 2.5, 1, 2304, True))) == count


def test_linear_attention_equals_the_quadratic_sum() -> None:
    torch.manual_seed(0)
    q, k = torch.rand(2, 3, 10, 4), torch.rand(2, 3, 10, 4)
    v = torch.randn(2, 3, 10, 4)
    weights = q.double() @ k.double().transpose(-1, -2)
    expected = (weights @ v.double()) / (weights.sum(-1, keepdim=True) + LINEAR_ATTENTION_EPS)
    torch.testing.assert_close(linear_attention(q, k, v).double(), expected, rtol=1e-5, atol=1e-6)


def test_padding_of_text_changes_nothing() -> None:
    network = randomised(tiny())
    latents, timesteps, text = torch.randn(2, 8, 4, 4), torch.tensor([10.0, 900.0]), torch.randn(2, 5, 48)
    padded = torch.cat([text, torch.full((2, 3, 48), 7.0)], dim=1)
    with torch.no_grad():
        alone = network(latents, timesteps, network.encode_text(text, torch.ones(2, 5, dtype=torch.bool)))
        beside = network(latents, timesteps, network.encode_text(padded, torch.arange(8).expand(2, 8) < 5))
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-6)


def test_joined_text_contexts_act_as_each_alone() -> None:
    network = randomised(tiny())
    latents, timesteps = torch.randn(2, 8, 4, 4), torch.tensor([10.0, 900.0])
    long = network.encode_text(torch.randn(2, 5, 48), torch.ones(2, 5, dtype=torch.bool))
    short = network.encode_text(torch.randn(2, 1, 48), torch.ones(2, 1, dtype=torch.bool))
    with torch.no_grad():
        both = network(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), concatenate(long, short))
        apart = torch.cat([network(latents, timesteps, long), network(latents, timesteps, short)])
    assert (both - apart).norm() / apart.norm() < 1e-5

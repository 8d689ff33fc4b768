"""The network is SANA-1.5's: equal to diffusers' class with the same weights, and of the published sizes."""

import math
import secrets
from random import Random

import pytest
import torch
import torch.nn.functional as F
from diffusers import SanaTransformer2DModel

from kernels.linear_attention.reference import attend
from model.network import NetworkConfig, Sana, concatenate, parameter_count
from model.numerics import Numerics

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


def tiny(qk_norm: bool = True, patch_size: int = 1, numerics: Numerics = "diffusers") -> NetworkConfig:
    return NetworkConfig(8, 64, 2, 16, 4, 2.5, patch_size, 48, qk_norm, numerics)


def randomised(config: NetworkConfig, seed: int = 0) -> Sana:
    """A network whose every parameter is random, so that a dropped bias or a norm left at one shows."""
    torch.manual_seed(seed)
    network = Sana(config)
    with torch.no_grad():
        for parameter in network.parameters():
            # matrices keep the size of what they multiply: logits of hundreds would turn rounding into differences
            inputs = parameter[0].numel() if parameter.ndim > 1 and parameter.shape[0] not in (2, 6) else 25
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(inputs))
        network.attention_y_norm.weight.add_(1)
    return network


def reference(network: Sana) -> SanaTransformer2DModel:
    """diffusers' network with the same weights."""
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


def drawn_config(random: Random, numerics: Numerics) -> NetworkConfig:
    """A small random configuration, of SANA-1.0 or SANA-1.5."""
    heads = random.choice([1, 2, 4])
    return NetworkConfig(
        in_channels=random.choice([3, 8]),
        hidden_size=heads * 16 * random.choice([1, 2]),
        depth=random.choice([1, 2, 3]),
        linear_head_dim=random.choice([8, 16]),
        cross_heads=heads,
        mlp_ratio=random.choice([2.0, 2.5]),
        patch_size=random.choice([1, 2]),
        caption_channels=random.choice([12, 48]),
        qk_norm=random.choice([True, False]),
        numerics=numerics,
    )


def drawn_inputs(config: NetworkConfig, random: Random) -> tuple[torch.Tensor, ...]:
    """Latents of any shape, several times, text and its mask with padding."""
    height, width = (config.patch_size * random.randint(1, 5) for _ in range(2))
    lengths = torch.tensor([[random.randint(1, 7)] for _ in range(3)])
    timesteps = torch.tensor([random.uniform(0, 1000) for _ in range(3)])
    text = torch.randn(3, 7, config.caption_channels)
    return torch.randn(3, config.in_channels, height, width), timesteps, text, torch.arange(7) < lengths


def drawn_seed() -> int:
    """A new seed for each run, in the output of a test that fails."""
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    return seed


def test_network_equals_diffusers_with_the_same_weights() -> None:
    random = Random(seed := drawn_seed())
    for _ in range(12):
        config = drawn_config(random, "diffusers")
        network = randomised(config, seed)
        latents, timesteps, text, mask = drawn_inputs(config, random)
        with torch.no_grad():
            ours = network(latents, timesteps, network.encode_text(text, mask))
            theirs = reference(network)(
                latents, encoder_hidden_states=text, timestep=timesteps, encoder_attention_mask=mask.float()
            ).sample
        assert (ours - theirs).norm() / theirs.norm() < 1e-5, config


def test_under_nvlabs_the_network_follows_the_published_equations_in_double_precision() -> None:
    random = Random(seed := drawn_seed())
    for _ in range(8):
        config = drawn_config(random, "nvlabs")
        network = randomised(config, seed)
        latents, timesteps, text, mask = drawn_inputs(config, random)
        with torch.no_grad():
            ours = network(latents, timesteps, network.encode_text(text, mask))
        weights = {name: value.double() for name, value in network.state_dict().items()}
        expected = published_equations(weights, config, latents, timesteps, text, mask)
        assert (ours - expected).norm() / expected.norm() < 1e-5, config


def test_the_two_numerics_differ_where_they_say() -> None:
    nvlabs, diffusers = (randomised(tiny(numerics=numerics)) for numerics in ("nvlabs", "diffusers"))
    latents, text, mask = torch.randn(1, 8, 4, 4), torch.randn(1, 5, 48), torch.ones(1, 5, dtype=torch.bool)

    def velocity(network: Sana, time: float) -> torch.Tensor:
        with torch.no_grad():
            return network(latents, torch.tensor([time]), network.encode_text(text, mask))

    assert torch.equal(velocity(nvlabs, 499.9), velocity(nvlabs, 499.0))
    assert not torch.equal(velocity(diffusers, 499.9), velocity(diffusers, 499.0))
    assert nvlabs.blocks[0].cross_attn.q_norm.eps == 1e-6 and diffusers.blocks[0].cross_attn.q_norm.eps == 1e-5
    assert nvlabs.blocks[0].attn.eps == 1e-8 and diffusers.blocks[0].attn.eps == 1e-15


def published_equations(
    w: dict[str, torch.Tensor],
    config: NetworkConfig,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """The network of the published code in float64, one sample and one head at a time."""
    hidden, p = config.hidden_size, config.patch_size
    samples = []
    for z, time, y, seen in zip(latents.double(), timesteps.double(), text.double(), mask, strict=True):
        height, width = z.shape[1] // p, z.shape[2] // p
        patches = z.reshape(-1, height, p, width, p).permute(1, 3, 0, 2, 4).reshape(height * width, -1)
        x = patches @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"]
        # in float32, as the code has it: at a thousand radians the rounding of an angle is all the difference
        angles = (time.floor().float() * torch.exp(-math.log(10000) * torch.arange(128).float() / 128)).double()
        waves = torch.cat([angles.cos(), angles.sin()])
        t = linear(F.silu(linear(waves, w, "t_embedder.mlp.0")), w, "t_embedder.mlp.2")
        t0 = linear(F.silu(t), w, "t_block.1").reshape(6, hidden)
        y = linear(F.gelu(linear(y, w, "y_embedder.y_proj.fc1"), approximate="tanh"), w, "y_embedder.y_proj.fc2")
        y = rms(y, w["attention_y_norm.weight"], 1e-5)[seen]
        for i in range(config.depth):
            b = {key.removeprefix(f"blocks.{i}."): value for key, value in w.items() if key.startswith(f"blocks.{i}.")}
            s1, c1, g1, s2, c2, g2 = b["scale_shift_table"] + t0
            x = x + g1 * linear(linear_sum(standardise(x) * (1 + c1) + s1, b, config), b, "attn.proj")
            x = x + linear(softmax_sum(x, y, b, config), b, "cross_attn.proj")
            x = x + g2 * feed_forward(standardise(x) * (1 + c2) + s2, b, height, width)
        shift, scale = w["final_layer.scale_shift_table"] + t
        out = linear(standardise(x) * (1 + scale) + shift, w, "final_layer.linear")
        samples.append(out.reshape(height, width, p, p, -1).permute(4, 0, 2, 1, 3).reshape(-1, height * p, width * p))
    return torch.stack(samples)


def linear(x: torch.Tensor, w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def standardise(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def linear_sum(x: torch.Tensor, b: dict[str, torch.Tensor], config: NetworkConfig) -> torch.Tensor:
    q, k, v = (x @ part.T for part in b["attn.qkv.weight"].chunk(3))
    if config.qk_norm:
        q, k = rms(q, b["attn.q_norm.weight"], 1e-5), rms(k, b["attn.k_norm.weight"], 1e-5)
    out = []
    for first in range(0, config.hidden_size, config.linear_head_dim):
        head = slice(first, first + config.linear_head_dim)
        weights = q[:, head].relu() @ k[:, head].relu().T
        out.append(weights @ v[:, head] / (weights.sum(1, keepdim=True) + 1e-8))
    return torch.cat(out, dim=1)


def softmax_sum(x: torch.Tensor, y: torch.Tensor, b: dict[str, torch.Tensor], config: NetworkConfig) -> torch.Tensor:
    q, (k, v) = linear(x, b, "cross_attn.q_linear"), linear(y, b, "cross_attn.kv_linear").chunk(2, dim=1)
    if config.qk_norm:
        q, k = rms(q, b["cross_attn.q_norm.weight"], 1e-6), rms(k, b["cross_attn.k_norm.weight"], 1e-6)
    width = config.hidden_size // config.cross_heads
    heads = [slice(first, first + width) for first in range(0, config.hidden_size, width)]
    return torch.cat([(q[:, h] @ k[:, h].T / math.sqrt(width)).softmax(1) @ v[:, h] for h in heads], dim=1)


def feed_forward(x: torch.Tensor, b: dict[str, torch.Tensor], height: int, width: int) -> torch.Tensor:
    x = F.silu(x @ b["mlp.inverted_conv.conv.weight"].flatten(1).T + b["mlp.inverted_conv.conv.bias"])
    grid = F.pad(x.reshape(height, width, -1), (0, 0, 1, 1, 1, 1))
    kernel = b["mlp.depth_conv.conv.weight"][:, 0]
    out = b["mlp.depth_conv.conv.bias"] + sum(
        grid[i : i + height, j : j + width] * kernel[:, i, j] for i in range(3) for j in range(3)
    )
    value, gate = out.reshape(height * width, -1).chunk(2, dim=1)
    return (value * F.silu(gate)) @ b["mlp.point_conv.conv.weight"].flatten(1).T


@pytest.mark.parametrize(
    ("depth", "count"), [(20, 1_604_641_952), (30, 2_383_937_952), (40, 3_163_233_952), (60, 4_721_825_952)]
)
def test_published_sizes_have_the_published_parameter_counts(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert parameter_count(Sana(NetworkConfig(32, 2240, depth, 32, 20, 2.5, 1, 2304, True, "nvlabs"))) == count


def test_the_published_06b_has_its_parameter_count() -> None:
    with torch.device("meta"):
        count = parameter_count(Sana(NetworkConfig(32, 1152, 28, 32, 16, 2.5, 1, 2304, False, "nvlabs")))
    assert round(count / 1e6, 2) == 591.75


def test_linear_attention_equals_the_quadratic_sum() -> None:
    torch.manual_seed(0)
    q, k = torch.rand(2, 3, 10, 4), torch.rand(2, 3, 10, 4)
    v = torch.randn(2, 3, 10, 4)
    weights = q.double() @ k.double().transpose(-1, -2)
    expected = (weights @ v.double()) / (weights.sum(-1, keepdim=True) + 1e-8)
    torch.testing.assert_close(attend(q, k, v, 1e-8).double(), expected, rtol=1e-5, atol=1e-6)


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

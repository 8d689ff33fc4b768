"""Claims about the weights that training from scratch starts from, under both conventions."""

import math
import re

import pytest
import torch
from torch import Tensor

from model.growth import grow
from model.network import NetworkConfig, Sana
from model.numerics import Initialisation

WIDTH, INNER, TEXT, LATENT, TIMES = 160, 400, 96, 32, 256
CONFIG = NetworkConfig(LATENT, WIDTH, 2, 32, 4, 2.5, 1, TEXT, True, "nvlabs")


def xavier(inputs: int, outputs: int) -> tuple[str, float]:
    """Uniform, with a variance of 2 / (inputs + outputs)."""
    return "uniform", math.sqrt(6 / (inputs + outputs))


def torch_default(inputs: int) -> tuple[str, float]:
    """PyTorch's own, for weights (kaiming-uniform with a = sqrt(5)) and biases of a layer of so many inputs."""
    return "uniform", 1 / math.sqrt(inputs)


PUBLISHED: dict[str, tuple[str, float]] = {
    r"x_embedder\.proj\.weight": xavier(LATENT, WIDTH),
    r"x_embedder\.proj\.bias": torch_default(LATENT),
    r"t_embedder\.mlp\.[02]\.weight": ("normal", 0.02),
    r"t_block\.1\.weight": ("normal", 0.02),
    r"y_embedder\.y_proj\.fc[12]\.weight": ("normal", 0.02),
    r"attention_y_norm\.weight": ("constant", 0.01),
    r"blocks\.\d\.attn\.qkv\.weight": xavier(WIDTH, 3 * WIDTH),
    r"blocks\.\d\.cross_attn\.kv_linear\.weight": xavier(WIDTH, 2 * WIDTH),
    r"blocks\.\d\.(attn\.proj|cross_attn\.(q_linear|proj))\.weight": xavier(WIDTH, WIDTH),
    r"blocks\.\d\.(cross_)?attn\.[qk]_norm\.weight": ("constant", 1.0),
    r"blocks\.\d\.mlp\.inverted_conv\.conv\.(weight|bias)": torch_default(WIDTH),
    r"blocks\.\d\.mlp\.depth_conv\.conv\.(weight|bias)": torch_default(9),
    r"blocks\.\d\.mlp\.point_conv\.conv\.weight": torch_default(INNER),
    r"(blocks\.\d|final_layer)\.scale_shift_table": ("normal", 1 / math.sqrt(WIDTH)),
    r"final_layer\.linear\.weight": xavier(WIDTH, LATENT),
    r"(t_embedder\.mlp\.[02]|t_block\.1|y_embedder\.y_proj\.fc[12]|final_layer\.linear)\.bias": ("constant", 0.0),
    r"blocks\.\d\.(attn\.proj|cross_attn\.(q_linear|kv_linear|proj))\.bias": ("constant", 0.0),
}
"""What the published code states, parameter by parameter: every name is matched by one pattern."""


def network_of(initialisation: Initialisation, seed: int = 0) -> Sana:
    """A network with initial weights."""
    torch.manual_seed(seed)
    return Sana(CONFIG, initialisation)


def assert_drawn(tensor: Tensor, kind: str, size: float, name: str) -> None:
    """The numbers are those of the distribution: mean, variance, and the fourth moment, by which the kinds differ."""
    values = tensor.detach().double().flatten()
    if kind == "constant":
        assert torch.equal(tensor, torch.full_like(tensor, size)), name
        return
    assert values.unique().numel() > 0.95 * min(values.numel(), 10000), name
    std, fourth = (size / math.sqrt(3), 9 / 5) if kind == "uniform" else (size, 3.0)
    allowed = 5 / math.sqrt(values.numel())  # five standard errors
    assert abs(values.mean()) < allowed * std, name
    assert values.square().mean() == pytest.approx(std**2, rel=allowed * math.sqrt(fourth - 1)), name
    if kind == "uniform":
        assert values.abs().max() <= size * (1 + 1e-6), name
    if values.numel() > 5000:
        assert (values / std).pow(4).mean() == pytest.approx(fourth, rel=0.15), name
        assert (values.abs().max() > 3 * std) == (kind == "normal"), name


def test_published_initial_weights_are_those_that_the_published_code_states() -> None:
    network = network_of("published")
    for name, parameter in network.named_parameters():
        statements = [statement for pattern, statement in PUBLISHED.items() if re.fullmatch(pattern, name)]
        assert len(statements) == 1, name
        assert_drawn(parameter, *statements[0], name)


def test_no_published_weight_starts_at_zero() -> None:
    matrices = [parameter for parameter in network_of("published").parameters() if parameter.ndim > 1]
    assert all((matrix != 0).float().mean() > 0.999 for matrix in matrices)


def test_the_two_differ_in_the_caption_norm_and_in_cross_attention_s_output_alone() -> None:
    ours, published = (dict(network_of(one).named_parameters()) for one in ("ours", "published"))
    differing = {name for name in ours if not torch.equal(ours[name], published[name])}
    assert differing == {"attention_y_norm.weight", *(f"blocks.{i}.cross_attn.proj.weight" for i in range(2))}
    assert (ours["attention_y_norm.weight"] == 1).all()
    assert all(ours[name].count_nonzero() == 0 for name in differing - {"attention_y_norm.weight"})


def test_a_network_that_is_not_told_starts_as_ours() -> None:
    torch.manual_seed(0)
    untold = Sana(CONFIG).state_dict()
    assert all(torch.equal(tensor, untold[name]) for name, tensor in network_of("ours").state_dict().items())


def test_new_blocks_of_a_growth_follow_its_own_rules_whatever_the_small_model_started_from() -> None:
    grown = [
        grow(network_of(one), 5, "partial_preservation", 1, 0.07, torch.Generator().manual_seed(3))
        for one in ("ours", "published")
    ]
    for first, second in zip(grown[0].blocks[1:], grown[1].blocks[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    for block in grown[1].blocks[1:]:
        weights = dict(block.named_parameters())
        for name in ("attn.proj.weight", "cross_attn.proj.weight", "mlp.point_conv.conv.weight"):
            assert weights[name].count_nonzero() == 0
        for name in ("attn.qkv.weight", "cross_attn.q_linear.weight", "cross_attn.kv_linear.weight"):
            assert_drawn(weights[name], "normal", 0.07, name)
        assert_drawn(weights["mlp.inverted_conv.conv.weight"], "normal", 0.07, "inverted_conv")
        assert_drawn(weights["mlp.depth_conv.conv.weight"], "normal", 0.2, "depth_conv")
    kept = network_of("published")
    assert all(map(torch.equal, grown[1].blocks[0].parameters(), kept.blocks[0].parameters()))
    assert (grown[1].attention_y_norm.weight == 0.01).all()

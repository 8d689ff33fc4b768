"""Floating-point operations of the network, for one sample; a multiplication and the addition after it are two.

Counted is what `torch.utils.flop_counter` counts: matrix products, convolutions and attention. Left out are norms,
activations, modulation, sums over tokens, the solver and the optimizer (a few operations for each value or parameter,
less than a hundredth of the whole at the paper's width). A backward pass is two products for each of the forward's:
one for the input's gradient, one for the weight's; inputs of the network itself have none. Fused attention computes its
scores a second time in the backward pass, which is not counted either.

Shapes: N latent tokens, T text tokens (padding included), D hidden size, I inner channels, C latent channels, E caption
channels.
"""

from model.layers import TIME_FREQUENCIES
from model.network import NetworkConfig
from tasks.planning.parameter_shapes import inner_channels

PRODUCT = 2  # operations of a multiplication with its addition
KERNEL = 3 * 3  # of the depth-wise convolution


def block_flops(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """One block's forward pass, without the keys and values of its text."""
    hidden, inner = config.hidden_size, inner_channels(config)
    projections = 6 * hidden**2  # queries, keys, values, output; cross-attention's queries and output
    linear_attention = hidden * (2 * config.linear_head_dim + 1)  # k v, q (k v) and the denominator
    cross_attention = 2 * text_tokens * hidden  # scores, and values weighted by them
    feed_forward = 3 * hidden * inner + KERNEL * 2 * inner
    return PRODUCT * tokens * (projections + linear_attention + cross_attention + feed_forward)


def text_flops(config: NetworkConfig, text_tokens: int) -> int:
    """The caption's embedding and every block's keys and values: once for a prompt, whatever the solver's steps."""
    hidden = config.hidden_size
    embedder = config.caption_channels * hidden + hidden**2
    return PRODUCT * text_tokens * (embedder + config.depth * 2 * hidden**2)


def velocity_flops(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """The network's forward pass on one latent, given its text's keys and values: what a solver's step takes."""
    hidden = config.hidden_size
    patches = 2 * tokens * _patch_values(config) * hidden  # in and out
    time = TIME_FREQUENCIES * hidden + hidden**2 + 6 * hidden**2
    return PRODUCT * (patches + time) + config.depth * block_flops(config, tokens, text_tokens)


def forward_flops(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """A forward pass with its text, as in training and for a held-out loss."""
    return text_flops(config, text_tokens) + velocity_flops(config, tokens, text_tokens)


def training_flops(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """Forward and backward pass of one sample."""
    hidden = config.hidden_size
    inputs = tokens * _patch_values(config) + text_tokens * config.caption_channels + TIME_FREQUENCIES
    return 3 * forward_flops(config, tokens, text_tokens) - PRODUCT * hidden * inputs


def sampling_flops(config: NetworkConfig, tokens: int, text_tokens: int, steps: int, guidance: float) -> int:
    """The solver's steps for one picture; guidance other than 1 evaluates the network with and without the text."""
    branches = 1 if guidance == 1 else 2
    return steps * branches * velocity_flops(config, tokens, text_tokens)


def _patch_values(config: NetworkConfig) -> int:
    return config.in_channels * config.patch_size**2

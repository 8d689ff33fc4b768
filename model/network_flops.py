"""The floating-point operations of the network for one sample. A multiplication and the addition after it are two.

The formulas count what `torch.utils.flop_counter` counts: matrix products, convolutions and attention. Norms,
activations, modulation, sums over tokens, the solver and the optimizer are left out. They take a few operations for
each value or parameter, which is less than a hundredth of the whole at the paper's width. A backward pass has two
products for each product of the forward pass: one for the gradient of its input and one for the gradient of its weight.
The network's own inputs need no gradient. Fused attention computes its scores again in the backward pass, which is not
counted.

Shapes: N latent tokens, T text tokens (padding included), D hidden size, I inner channels, C latent channels, E caption
channels.
"""

from model.layers import TIME_FREQUENCIES
from model.network import NetworkConfig

PRODUCT = 2  # operations of a multiplication with its addition
KERNEL = 3 * 3  # of the depth-wise convolution


def inner_channels(config: NetworkConfig) -> int:
    """The channels of the Mix-FFN after its gate."""
    return int(config.mlp_ratio * config.hidden_size)


def block_flops(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """Operations of one block's forward pass, without the keys and values of the text."""
    hidden, inner = config.hidden_size, inner_channels(config)
    projections = 6 * hidden**2  # queries, keys, values, output; cross-attention's queries and output
    linear_attention = hidden * (2 * config.linear_head_dim + 1)  # k v, q (k v) and the denominator
    cross_attention = 2 * text_tokens * hidden  # scores, and values weighted by them
    feed_forward = 3 * hidden * inner + KERNEL * 2 * inner
    return PRODUCT * tokens * (projections + linear_attention + cross_attention + feed_forward)


def text_flops(config: NetworkConfig, text_tokens: int) -> int:
    """Operations of the caption's embedding and all blocks' keys and values of text, once for all steps."""
    hidden = config.hidden_size
    embedder = config.caption_channels * hidden + hidden**2
    return PRODUCT * text_tokens * (embedder + config.depth * 2 * hidden**2)


def velocity_flops(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """Operations of the network on one latent, given the keys and values of its text: one step of the solver."""
    hidden = config.hidden_size
    patches = 2 * tokens * _patch_values(config) * hidden  # in and out
    time = TIME_FREQUENCIES * hidden + hidden**2 + 6 * hidden**2
    return PRODUCT * (patches + time) + config.depth * block_flops(config, tokens, text_tokens)


def forward_flops(config: NetworkConfig, tokens: int, text_tokens: int) -> int:
    """Operations of a forward pass with its text, as in training and for a held-out loss."""
    return text_flops(config, text_tokens) + velocity_flops(config, tokens, text_tokens)


def training_flops(config: NetworkConfig, tokens: int, text_tokens: int, recomputed: int = 0) -> int:
    """Operations of the forward and the backward pass of one sample.

    The backward pass computes the first `recomputed` blocks once more, with their keys and values of the text.
    """
    hidden = config.hidden_size
    inputs = tokens * _patch_values(config) + text_tokens * config.caption_channels + TIME_FREQUENCIES
    once_more = block_flops(config, tokens, text_tokens) + PRODUCT * text_tokens * 2 * hidden**2
    both = 3 * forward_flops(config, tokens, text_tokens) - PRODUCT * hidden * inputs
    return both + min(recomputed, config.depth) * once_more


def sampling_flops(config: NetworkConfig, tokens: int, text_tokens: int, steps: int, guidance: float) -> int:
    """Operations of all steps for one picture. Guidance other than 1 runs the network with and without the text."""
    branches = 1 if guidance == 1 else 2
    return steps * branches * velocity_flops(config, tokens, text_tokens)


def _patch_values(config: NetworkConfig) -> int:
    return config.in_channels * config.patch_size**2

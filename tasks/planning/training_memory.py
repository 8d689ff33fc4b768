"""Memory of training, in bytes: weights, gradients, optimizer state, and the activations that a backward pass needs.

Weights, gradients and EMA are float32 or bfloat16. The optimizer's state is float32, unless the optimizer packs it.
Autocast multiplies bfloat16 copies of float32 weights. Shards have no such copies: the rows of one block or two are
gathered at a time. Activations are the tensors that autograd saves for a micro-batch. Of blocks that the backward pass
recomputes it saves the inputs alone. Memory that an operation takes only while it runs is left out, such as casts,
gradients of activations and the optimizer's work on one matrix. So is the memory that the allocator holds in reserve.

Shapes: N latent tokens, T text tokens (padding included), D hidden size, I inner channels, C latent channels, E caption
channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

from kernels.blockwise import BLOCK
from kernels.came8bit.state import QUANTIZED_ABOVE
from model.layers import TIME_FREQUENCIES
from model.network import NetworkConfig
from model.network_flops import inner_channels
from tasks.planning.parameter_shapes import (
    Shape,
    block_shapes,
    outer_shapes,
    parameter_shapes,
    parameters,
)

FLOAT = 4
WIDTH = {"float32": 4, "bfloat16": 2}  # bytes of a value in matrix products
SCALE_AND_MINIMUM = 2 * FLOAT  # bytes beside a block of CAME-8bit's momentum
ADAMW_STEP = FLOAT  # torch keeps each parameter's count of steps as a tensor

# bitsandbytes' AdamW8bit: smaller parameters stay in float32, blocks have a scale, and two maps serve all parameters
ADAMW8BIT_FROM = 4096
ADAMW8BIT_BLOCK = 256
ADAMW8BIT_MAPS = 2 * 256 * FLOAT


@dataclass(frozen=True)
class Batch:
    """The size of one pass of the network: samples, latent tokens of each, and text tokens of each with padding."""

    samples: int
    tokens: int
    text_tokens: int


@dataclass(frozen=True)
class Precision:
    """How products are computed. Fused attention, on GPUs, does not store its probabilities."""

    dtype: str  # float32 | bfloat16
    fused_attention: bool

    @property
    def width(self) -> int:
        """Bytes of a value in matrix products."""
        return WIDTH[self.dtype]


def optimizer_bytes(name: str, config: NetworkConfig) -> int:
    """The bytes of the state of the optimizer `name` (see `kernels.optimizers`) for the network's parameters."""
    state = STATE_BYTES[name]
    shared = ADAMW8BIT_MAPS if name == "adamw8bit" else 0
    return shared + sum(count * state(shape) for shape, count in parameter_shapes(config).items())


def _came(shape: Shape, packed: bool = False) -> int:
    size = prod(shape)
    if not _is_matrix(shape):
        return 2 * FLOAT * size
    statistics = 2 * FLOAT * (shape[0] + shape[1])
    if packed and size > QUANTIZED_ABOVE:
        return size + SCALE_AND_MINIMUM * ceil(size / BLOCK) + statistics
    return FLOAT * size + statistics


def _came8bit(shape: Shape) -> int:
    return _came(shape, packed=True)


def _adamw(shape: Shape) -> int:
    return 2 * FLOAT * prod(shape) + ADAMW_STEP


def _adamw8bit(shape: Shape) -> int:
    size = prod(shape)
    return 2 * FLOAT * size if size < ADAMW8BIT_FROM else 2 * (size + FLOAT * ceil(size / ADAMW8BIT_BLOCK))


STATE_BYTES: dict[str, Callable[[Shape], int]] = {
    "came8bit": _came8bit,
    "came": _came,
    "adamw8bit": _adamw8bit,
    "adamw": _adamw,
}


def _is_matrix(shape: Shape) -> bool:
    return len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))


def weight_bytes(config: NetworkConfig, dtype: str = "float32") -> int:
    """The bytes of the network's weights. Its gradients, its EMA and its checkpoint without the header are as large."""
    return WIDTH[dtype] * parameters(config)


def gradient_bytes(config: NetworkConfig, dtype: str, step_in_backward: bool) -> int:
    """The bytes of the gradients.

    With steps in the backward pass a gradient is freed before the next is made, so the largest one counts.
    """
    if not step_in_backward:
        return weight_bytes(config, dtype)
    return WIDTH[dtype] * max(map(prod, parameter_shapes(config)))


def sharded_gradient_bytes(config: NetworkConfig, dtype: str, shards: int, replicas: int, passes: int) -> int:
    """The bytes of the gradients of a rank when `replicas` groups of `shards` ranks each share the rows.

    After the one pass of a step a rank has the gradients of its rows. With several passes it adds gradients up in
    float32, whatever the format of the weights: those of its rows if there are several groups, else whole gradients
    of all parameters (`tasks.training.fsdp_sharding.sum_over_ranks`).
    """
    if passes == 1:
        return weight_bytes(config, dtype) // shards
    return weight_bytes(config) // (shards if replicas > 1 else 1)


def gathered_bytes(config: NetworkConfig, dtype: str) -> int:
    """The most bytes of gathered weights that a rank of a sharded training holds at once.

    What lies outside the blocks is gathered for the whole of a pass. Beside it there are the block that computes and
    the next one, whose gather has begun.
    """
    outer, block = _values(outer_shapes(config)), _values(block_shapes(config))
    return WIDTH[dtype] * (outer + min(config.depth, 2) * block)


def _values(shapes: dict[Shape, int]) -> int:
    return sum(count * prod(shape) for shape, count in shapes.items())


def backward_bytes(config: NetworkConfig, batch: Batch, precision: Precision, recomputed: int, copies: bool) -> int:
    """The most bytes that autograd holds at once for a micro-batch: activations, and autocast's copies of weights.

    `copies` says whether autocast makes any. It makes none of weights that are in bfloat16, as gathered shards are.

    With some blocks kept, most is held when the forward pass ends. With all blocks recomputed it may be when the
    backward pass has computed the last block once more; what the final layer saved is free then.
    """
    dtype = precision.dtype if copies else "float32"
    saved = activation_bytes(config, batch, precision, recomputed) + autocast_bytes(config, dtype, recomputed)
    if recomputed < config.depth:
        return saved
    last = (
        _block(config, batch, precision) - _stream(config, batch.tokens) - _head(config, batch.tokens, precision.width)
    )
    return max(saved, saved + batch.samples * last + _block_copies(config, dtype))


def autocast_bytes(config: NetworkConfig, dtype: str, recomputed: int = 0) -> int:
    """The bytes of the copies of weights that autocast makes for products and autograd keeps for the backward pass.

    No copies are kept for the first layers of the time and caption embedders, whose inputs need no gradient, and for
    the first `recomputed` blocks.
    """
    if WIDTH[dtype] == FLOAT:
        return 0
    hidden = config.hidden_size
    unkept = hidden * (TIME_FREQUENCIES + config.caption_channels)
    outer = _product_weights(outer_shapes(config)) - 2 * hidden  # the final layer's modulation table is in no product
    return WIDTH[dtype] * (outer - unkept) + _kept_blocks(config, recomputed) * _block_copies(config, dtype)


def _block_copies(config: NetworkConfig, dtype: str) -> int:
    if WIDTH[dtype] == FLOAT:
        return 0
    return WIDTH[dtype] * (_product_weights(block_shapes(config)) - 6 * config.hidden_size)


def _product_weights(shapes: dict[Shape, int]) -> int:
    return sum(count * prod(shape) for shape, count in shapes.items() if len(shape) > 1)


def activation_bytes(config: NetworkConfig, batch: Batch, precision: Precision, recomputed: int = 0) -> int:
    """The bytes that autograd saves in the forward pass of one micro-batch, without copies of weights.

    Of the first `recomputed` blocks their tokens are saved, and for all of these blocks together the shared modulation
    and the mask of the text. The formula holds for attention with two heads or more. With a single head some copies
    would be views.
    """
    tokens, text, width = batch.tokens, batch.text_tokens, precision.width
    kept = _kept_blocks(config, recomputed)
    blocks = kept * _block(config, batch, precision) + (config.depth - kept) * _stream(config, tokens)
    if kept < config.depth:
        blocks += width * 6 * config.hidden_size + text  # the mask has a byte for each token
    return batch.samples * (blocks + _embedders(config, tokens, text, width) + _head(config, tokens, width))


def _kept_blocks(config: NetworkConfig, recomputed: int) -> int:
    return max(config.depth - recomputed, 0)


def _block(config: NetworkConfig, batch: Batch, precision: Precision) -> int:
    tokens, width = batch.tokens, precision.width
    attention = _self_attention(config, tokens, width) + _cross_attention(config, tokens, batch.text_tokens, precision)
    return attention + _feed_forward(config, tokens, width)


def _stream(config: NetworkConfig, tokens: int) -> int:
    """The tokens that enter a block, in float32."""
    return FLOAT * tokens * config.hidden_size


def _modulated(config: NetworkConfig, tokens: int, width: int) -> int:
    """A modulated layer norm: input, mean and deviation, normed values, the time's scale, and modulated values.

    All but the modulated values belong to the residual stream, which is float32.
    """
    values = tokens * config.hidden_size
    return FLOAT * (2 * values + 2 * tokens + config.hidden_size) + width * values


def _norm(rows: int, channels: int) -> int:
    """RMSNorm's deviation and normed values, in float32. Its input is counted by the operation that makes it."""
    return FLOAT * (rows + rows * channels)


def _self_attention(config: NetworkConfig, tokens: int, width: int) -> int:
    hidden, values = config.hidden_size, tokens * config.hidden_size
    rectified = 2 * width * values  # queries and keys behind ReLU
    # in float32: queries twice, keys and values laid out for products, their sums over tokens, and what is divided
    linear = FLOAT * (
        4 * values + hidden * config.linear_head_dim + hidden + values + tokens * hidden // config.linear_head_dim
    )
    gated = 2 * width * values + 6 * FLOAT * hidden  # projection's input and output, the modulation of the whole block
    total = _modulated(config, tokens, width) + rectified + linear + gated
    if config.qk_norm:
        # a float32 copy of queries and of keys; in float32 the norm keeps the product itself, values included
        inputs = 2 * FLOAT * values if width < FLOAT else 3 * width * values
        total += inputs + 2 * _norm(tokens, hidden)
    return total


def _cross_attention(config: NetworkConfig, tokens: int, text: int, precision: Precision) -> int:
    hidden, width, heads = config.hidden_size, precision.width, config.cross_heads
    values, text_values = tokens * hidden, text * hidden
    total = 2 * width * values  # inputs of the queries' and of the output projection
    if precision.fused_attention:
        keys = width * text_values if config.qk_norm else 0  # without the norm they are a view of the product below
        total += keys + 2 * width * text_values  # keys and values as one product
        total += width * values + FLOAT * tokens * heads + width * text  # queries, sums of scores, mask
    else:
        total += FLOAT * (values + 2 * text_values + heads * tokens * text)  # queries, keys, values, probabilities
    if config.qk_norm:
        total += FLOAT * values + _norm(tokens, hidden) + _norm(text, hidden)
        if width < FLOAT:
            total += FLOAT * text_values
        elif not precision.fused_attention:
            total += 2 * width * text_values
    return total


def _feed_forward(config: NetworkConfig, tokens: int, width: int) -> int:
    inner = inner_channels(config)
    wide = 3 * 2 * inner + 2 * inner  # before and behind SiLU, behind the convolution; the gate's SiLU and the product
    return _modulated(config, tokens, width) + width * tokens * (wide + config.hidden_size)


def _embedders(config: NetworkConfig, tokens: int, text: int, width: int) -> int:
    hidden = config.hidden_size
    latent = width * tokens * config.in_channels * config.patch_size**2
    time = width * (TIME_FREQUENCIES + 4 * hidden)
    caption = width * text * (config.caption_channels + 3 * hidden) + FLOAT * text * hidden + _norm(text, hidden)
    return latent + time + caption


def _head(config: NetworkConfig, tokens: int, width: int) -> int:
    latent = tokens * config.in_channels * config.patch_size**2
    return _modulated(config, tokens, width) + 2 * FLOAT * latent  # the loss keeps prediction and target

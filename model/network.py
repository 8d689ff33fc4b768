"""The SANA-1.5 network: a linear diffusion transformer for text-to-image (SANA-1.5 section 3.1; SANA section 2.2).

A block has these parts:

* linear self-attention with ReLU feature maps, and RMSNorm on queries and keys
* softmax cross-attention to the caption, with RMSNorm on queries and keys
* Mix-FFN: gated 1x1 convolutions around a depth-wise 3x3 convolution, which tells a token its position (there is no
  positional embedding)
* a modulation by the time: one for all blocks, plus a table for each block (AdaLN-single)

Parameter names are as in the published checkpoints. Shapes: B batch, N tokens (H*W), T text tokens, D hidden size,
C latent channels, E caption channels, h heads, d channels of a head.

Under autocast the residual stream is float32, as in the published code and in diffusers; matrix products take bfloat16.

`NetworkConfig.numerics` chooses between the numerics of the published code and those of diffusers. Two things differ
from both: padded text is masked with minus infinity instead of -10000, and the zero `pos_embed` buffer is left out.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.kernel_choice import chosen_kernels
from kernels.modulation import gated_residual, modulate
from model.layers import (
    CaptionEmbedder,
    CrossAttention,
    FinalLayer,
    LinearAttention,
    MixFeedForward,
    PatchEmbed,
    RMSNorm,
    TimestepEmbedder,
    operand_dtype,
    residual_stream,
)
from model.numerics import CONVENTIONS, Convention, Initialisation, Numerics

EMBEDDER_STD = 0.02  # the initial weights of the time and caption embedders
PUBLISHED_CAPTION_NORM = 0.01  # y_norm_scale_factor in the published configs


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a network. The published 1.6B has 20 blocks of 2240 channels, 70 linear heads, 20 cross heads."""

    in_channels: int  # of the latent
    hidden_size: int
    depth: int  # blocks
    linear_head_dim: int
    cross_heads: int
    mlp_ratio: float
    patch_size: int
    caption_channels: int  # of the text encoder
    qk_norm: bool  # SANA-1.5 has it in both attentions; SANA-1.0 has not
    numerics: Numerics

    @property
    def convention(self) -> Convention:
        """What `numerics` stands for."""
        return CONVENTIONS[self.numerics]


@dataclass(frozen=True)
class EmbeddedText:
    """A batch of captions before the blocks. Each block makes its own keys and values of them when it runs.

    One pass of the network, as in training, needs no more. The keys and values of all blocks are then never in memory
    together: for 128 captions of 300 tokens the 60 blocks of the 4.8B have 20.6 GB of them in bfloat16.
    """

    y_BTD: Tensor  # embedded and normalised captions
    mask_BT: Tensor  # true where there is text


@dataclass(frozen=True)
class TextContext:
    """A batch of captions as the blocks read them. It is computed once for a prompt and used at every solver step."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]  # for each block: keys and values (B, h, T, d)
    mask_BT: Tensor  # true where there is text

    def index(self, rows: Tensor) -> "TextContext":
        """The context of the prompts with the numbers `rows`. A number that is repeated gives a repeated prompt."""
        chosen = tuple((keys[rows], values[rows]) for keys, values in self.keys_values)
        return TextContext(chosen, self.mask_BT[rows])

    def under_mask(self, mask_BT: Tensor) -> "TextContext":
        """The same texts, read at the tokens of another mask. Raises ValueError if they have fewer tokens than it."""
        length, own = mask_BT.shape[1], self.mask_BT.shape[1]
        if own < length:
            raise ValueError(f"a text of {own} tokens cannot be read at {length}: pad it before encoding")
        cut = tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in self.keys_values)
        return TextContext(cut, mask_BT)


def concatenate(first: TextContext, second: TextContext) -> TextContext:
    """Two contexts as one batch. The shorter text is padded with tokens that the mask hides."""
    length = max(first.mask_BT.shape[1], second.mask_BT.shape[1])
    first, second = _lengthen(first, length), _lengthen(second, length)
    pairs = zip(first.keys_values, second.keys_values, strict=True)
    joined = tuple((torch.cat([k1, k2]), torch.cat([v1, v2])) for (k1, v1), (k2, v2) in pairs)
    return TextContext(joined, torch.cat([first.mask_BT, second.mask_BT]))


def _lengthen(context: TextContext, length: int) -> TextContext:
    """The context padded to `length` tokens."""
    extra = length - context.mask_BT.shape[1]
    padded = tuple((F.pad(k, (0, 0, 0, extra)), F.pad(v, (0, 0, 0, extra))) for k, v in context.keys_values)
    return TextContext(padded, F.pad(context.mask_BT, (0, extra)))


class SanaBlock(nn.Module):
    """Self-attention and Mix-FFN, each modulated and gated by time, with cross-attention between them."""

    def __init__(self, config: NetworkConfig) -> None:
        """Layers of the sizes of `config`, with PyTorch's initial weights; `initialize` sets those of a network."""
        super().__init__()
        hidden = config.hidden_size
        eps, norm_eps = config.convention.linear_attention_eps, config.convention.cross_norm_eps
        self.attn = LinearAttention(hidden, config.linear_head_dim, config.qk_norm, eps)
        self.cross_attn = CrossAttention(hidden, config.cross_heads, config.qk_norm, norm_eps)
        # `int` cuts the decimals off, as in the published code; `model.weights.fit_to_network` relies on it.
        self.mlp = MixFeedForward(hidden, int(config.mlp_ratio * hidden))
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden) / math.sqrt(hidden))
        self.recomputed = False  # set by `Sana.recompute_blocks`

    def forward(
        self,
        x_BND: Tensor,
        time_B6D: Tensor,
        text: Tensor | tuple[Tensor, Tensor],
        mask_BT: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """The tokens (B, N, D) after this block.

        `time_B6D` is the modulation that blocks share, and `size` is (H, W). `text` is the embedded captions (B, T, D)
        or this block's keys and values of them.
        """
        if not (self.recomputed and torch.is_grad_enabled()):
            return self._compute(x_BND, time_B6D, text, mask_BT, size)
        # The block calls `checkpoint` itself, so that forward hooks on it (FSDP2's, a teacher's) run once in a step and
        # not again in the recomputation. A block draws no random numbers, so no state of a generator is kept.
        with _casts_not_cached(x_BND.device.type):
            inputs = x_BND, time_B6D, text, mask_BT, size
            return checkpoint(self._compute, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _compute(
        self,
        x_BND: Tensor,
        time_B6D: Tensor,
        text: Tensor | tuple[Tensor, Tensor],
        mask_BT: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """What `forward` returns."""
        # The modulation has the stream's dtype. Under autocast the time is bfloat16, and the table may be.
        modulation_B6D = self.scale_shift_table.to(x_BND.dtype) + time_B6D.to(x_BND.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_B6D.chunk(6, dim=1)
        kernels, operands = chosen_kernels(), operand_dtype(x_BND)
        attended = self.attn(modulate(x_BND, shift1, scale1, kernels, operands))
        x_BND = gated_residual(x_BND, gate1, attended, kernels)
        # As published: cross-attention has no norm before it, no modulation and no gate.
        x_BND = x_BND + self.cross_attn(x_BND, text, mask_BT)
        fed_forward = self.mlp(modulate(x_BND, shift2, scale2, kernels, operands), size)
        return gated_residual(x_BND, gate2, fed_forward, kernels)


class Sana(nn.Module):
    """Predicts the velocity (noise minus latent) of a noised latent at a time, given a caption."""

    def __init__(self, config: NetworkConfig, initialisation: Initialisation = "ours") -> None:
        """A network with the initial weights of `initialize`, which `config` does not state: training moves them."""
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.x_embedder = PatchEmbed(config.in_channels, hidden, config.patch_size)
        self.t_embedder = TimestepEmbedder(hidden)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.y_embedder = CaptionEmbedder(config.caption_channels, hidden)
        self.attention_y_norm = RMSNorm(hidden, eps=1e-5)
        self.blocks = nn.ModuleList(SanaBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(hidden, config.patch_size, config.in_channels)
        initialize(self, initialisation)

    def recompute_blocks(self, count: int) -> None:
        """Checkpoint the activations of the first `count` blocks: of these a forward pass saves the inputs alone.

        The backward pass computes such a block once more when it comes to it. Outputs and gradients have the same bits.
        The first blocks are taken since they wait longest for the backward pass. Their inputs, and the saved tensors of
        the other blocks or of one block, are the most that is in memory at once. A `count` beyond the depth means all.
        """
        for index, block in enumerate(self.blocks):
            block.recomputed = index < count

    def embed_text(self, text_BTE: Tensor, mask_BT: Tensor) -> EmbeddedText:
        """Caption embeddings (B, T, E) and their mask (B, T), true on text, for one pass of the network."""
        return EmbeddedText(self.attention_y_norm(self.y_embedder(text_BTE)), mask_BT)

    def encode_text(self, text_BTE: Tensor, mask_BT: Tensor) -> TextContext:
        """Keys and values of every block from caption embeddings (B, T, E) and their mask (B, T), true on text."""
        y_BTD = self.embed_text(text_BTE, mask_BT).y_BTD
        return TextContext(tuple(block.cross_attn.keys_values(y_BTD) for block in self.blocks), mask_BT)

    def embed(self, latents_BCHW: Tensor, timesteps_B: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """What the blocks need: tokens (B, N, D), time (B, D), shared modulation (B, 6, D) and token grid (H, W)."""
        x_BND, size = self.x_embedder(latents_BCHW)
        x_BND = residual_stream(x_BND)
        # The published code tells the network whole timesteps.
        time_BD = self.t_embedder(timesteps_B.trunc() if self.config.convention.whole_timesteps else timesteps_B)
        time_B6D = self.t_block(time_BD).unflatten(1, (6, -1))
        return x_BND, time_BD, time_B6D, size

    def forward(self, latents_BCHW: Tensor, timesteps_B: Tensor, text: TextContext | EmbeddedText) -> Tensor:
        """The velocity (B, C, H, W) of latents at times in [0, 1000], which are 1000 times sigma.

        Both kinds of text give the same bits. A `TextContext` saves its keys and values from being made in every pass.
        """
        x_BND, time_BD, time_B6D, size = self.embed(latents_BCHW, timesteps_B)
        texts = text.keys_values if isinstance(text, TextContext) else [text.y_BTD] * len(self.blocks)
        for block, read in zip(self.blocks, texts, strict=True):
            x_BND = block(x_BND, time_B6D, read, text.mask_BT, size)
        return self.final_layer(x_BND, time_BD, size)


@contextmanager
def _casts_not_cached(kind: str) -> Iterator[None]:
    """A context in which autocast, where it is on, does not keep the bfloat16 copies of weights that it makes.

    It would keep them to the end of the forward pass (9.3 GB for the 4.8B), though each weight is used once in it.
    """
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield


def parameter_count(network: nn.Module) -> int:
    """How many numbers a network's parameters hold."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def initialize(network: Sana, initialisation: Initialisation) -> None:
    """Set the initial weights for training from scratch.

    Linear layers and the patch embedding are Xavier-uniform, biases of linear layers are 0, and the time and caption
    embedders are drawn from N(0, 0.02^2). The convolutions of the Mix-FFN and the bias of the patch embedding keep
    PyTorch's default, norms of queries and keys stay at 1, and the tables of the modulation at N(0, 1/D). All this is
    the published code's.

    One thing depends on `initialisation`. The large embeddings of a decoder must not swamp the first steps. To that end
    `published` starts the caption norm at 0.01, as the published code does, where no weight starts at zero. With `ours`
    the caption norm starts at 1 and cross-attention's output at zero, so that the gradient of the caption has its full
    size from the start (docs/log.md has the comparison). All other weights are the same numbers under both.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # As a matrix, whose fan-out is the number of channels. `flatten` gives a view, so the weight itself is set.
    nn.init.xavier_uniform_(network.x_embedder.proj.weight.flatten(1))
    embedders = (network.t_embedder.mlp[0], network.t_embedder.mlp[2], network.t_block[1])
    for linear in (*embedders, network.y_embedder.y_proj.fc1, network.y_embedder.y_proj.fc2):
        nn.init.normal_(linear.weight, std=EMBEDDER_STD)
    if initialisation == "published":
        network.attention_y_norm.weight.fill_(PUBLISHED_CAPTION_NORM)
        return
    for block in network.blocks:
        block.cross_attn.proj.weight.zero_()

"""Layers of the SANA-1.5 network. Shapes are as in `model.network`, parameter names as in the published checkpoints."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.kernel_choice import chosen_kernels
from kernels.linear_attention import NORM_EPS, linear_attention, split_heads
from kernels.mix_feed_forward import mix_feed_forward
from kernels.modulation import modulate

TIME_FREQUENCIES = 256
MAX_PERIOD = 10000.0
# On the CPU and with short texts, the backward pass of the fused kernel takes several times longer than plain products.
ATTENTION_BACKENDS = {
    "cpu": [SDPBackend.MATH],
    "cuda": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


def operand_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product gives its operands: autocast's where autocast is on, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def residual_stream(x_BND: Tensor) -> Tensor:
    """Tokens (B, N, D) as the blocks add to them: in float32 under autocast, else as they are.

    A bfloat16 stream would round away most of what new blocks add while that is 3e-4 of the stream's size. In the
    published code and in diffusers the float32 tables of the modulation promote the stream. Here it is float32 under
    autocast with bfloat16 weights too, whose tables would not promote it.

    It costs memory in training: each tensor of the stream that is kept for the backward pass takes 2 N D bytes more
    than in bfloat16 (`kernels/modulation/` says which are kept). Branches and their matrix products stay in bfloat16.
    """
    autocast = torch.is_autocast_enabled(x_BND.device.type)
    return x_BND.to(torch.promote_types(x_BND.dtype, torch.float32)) if autocast else x_BND


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension with a learned scale, computed in float32 and cast back."""

    def __init__(self, channels: int, eps: float) -> None:
        """`channels` scales, which start at 1; `eps` is added to the mean square."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any leading shape, normalised over its last dimension."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)


class LinearAttention(nn.Module):
    """ReLU linear attention (SANA section 2.2).

    out_i = sum_j relu(q_i).relu(k_j) v_j / (sum_j relu(q_i).relu(k_j) + eps)

    The norm of queries and keys spans all heads. Sums over tokens are taken in float32, as they leave float16's range.
    """

    def __init__(self, hidden_size: int, head_dim: int, qk_norm: bool, eps: float) -> None:
        """Heads of `head_dim` channels; `eps` is added to the denominator."""
        super().__init__()
        self.head_dim, self.eps = head_dim, eps
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.q_norm = RMSNorm(hidden_size, NORM_EPS) if qk_norm else None
        self.k_norm = RMSNorm(hidden_size, NORM_EPS) if qk_norm else None
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Self-attention over N tokens in time linear in N."""
        norms = None if self.q_norm is None else (self.q_norm.weight, self.k_norm.weight)
        return self.proj(linear_attention(self.qkv(x_BND), norms, self.head_dim, self.eps, chosen_kernels()))


class CrossAttention(nn.Module):
    """Softmax attention of latent tokens to text tokens. The norm of queries and keys spans all heads."""

    def __init__(self, hidden_size: int, heads: int, qk_norm: bool, norm_eps: float) -> None:
        """`heads` heads, which share `hidden_size` channels; `norm_eps` is for the norm of queries and keys."""
        super().__init__()
        self.head_dim = hidden_size // heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.q_norm = RMSNorm(hidden_size, norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(hidden_size, norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def keys_values(self, y_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h, T, d) of text (B, T, D). They depend on neither the latent nor the time."""
        keys, values = self.kv_linear(y_BTD).chunk(2, dim=-1)
        return split_heads(self.k_norm(keys), self.head_dim), split_heads(values, self.head_dim)

    def forward(self, x_BND: Tensor, text: Tensor | tuple[Tensor, Tensor], mask_BT: Tensor) -> Tensor:
        """Attend from N latent tokens to T text tokens. Text where `mask_BT` is false is not seen.

        `text` is (B, T, D), or the keys and values that `keys_values` made of it.
        """
        text = self.keys_values(text) if isinstance(text, Tensor) else text
        queries = split_heads(self.q_norm(self.q_linear(x_BND)), self.head_dim)
        # Text is encoded once, perhaps in another precision than the one that autocast gives the queries.
        keys, values = (part.to(queries.dtype) for part in text)
        with sdpa_kernel(ATTENTION_BACKENDS[queries.device.type]):
            out_BhNd = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask_BT[:, None, None, :])
        return self.proj(out_BhNd.transpose(1, 2).flatten(2))


class ConvLayer(nn.Module):
    """A convolution under the name `conv`, as the published checkpoints have it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Wrap `conv`."""
        super().__init__()
        self.conv = conv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """What `conv` computes."""
        return self.conv(x_BCHW)


class MixFeedForward(nn.Module):
    """Gated feed-forward with a depth-wise 3x3 convolution between 1x1 convolutions (GLUMBConv; SANA section 2.2)."""

    def __init__(self, hidden_size: int, inner: int) -> None:
        """`inner` channels behind the gate, and twice as many before it."""
        super().__init__()
        self.inverted_conv = ConvLayer(nn.Conv2d(hidden_size, 2 * inner, 1))
        self.depth_conv = ConvLayer(nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner))
        self.point_conv = ConvLayer(nn.Conv2d(inner, hidden_size, 1, bias=False))

    def forward(self, x_BND: Tensor, size: tuple[int, int]) -> Tensor:
        """Take tokens (B, H*W, D) through the convolutions on their grid (H, W).

        The 1x1 convolutions run as matrix products on tokens, so that no token is moved: the grid is channels-last.
        """
        x = F.linear(x_BND, self.inverted_conv.conv.weight.flatten(1), self.inverted_conv.conv.bias)
        x = mix_feed_forward(x, self.depth_conv.conv.weight, self.depth_conv.conv.bias, size, chosen_kernels())
        return F.linear(x, self.point_conv.conv.weight.flatten(1))


class PatchEmbed(nn.Module):
    """Patches of the latent as tokens, without normalisation and without position."""

    def __init__(self, channels: int, hidden_size: int, patch_size: int) -> None:
        """Patches of `patch_size` x `patch_size` cells of `channels` channels."""
        super().__init__()
        self.proj = nn.Conv2d(channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, latents_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, N, D) and their grid (H, W)."""
        x = self.proj(
            latents_BCHW.to(self.proj.weight.dtype)
        )  # solvers keep latents in float32, whatever the weights are
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class TimestepEmbedder(nn.Module):
    """Sinusoids of the time, cosines first, through two layers."""

    def __init__(self, hidden_size: int) -> None:
        """Layers from the sinusoids to `hidden_size` channels."""
        super().__init__()
        layers = nn.Linear(TIME_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(*layers)

    def forward(self, timesteps_B: Tensor) -> Tensor:
        """Embeddings (B, D) of times in [0, 1000]."""
        half = TIME_FREQUENCIES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timesteps_B.device) / half
        angles = timesteps_B.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        # The angles need float32. Without autocast bfloat16 weights take bfloat16 alone.
        return self.mlp(sinusoids.to(self.mlp[0].weight.dtype))


class CaptionProjection(nn.Module):
    """Two layers from the text encoder's channels to the network's."""

    def __init__(self, caption_channels: int, hidden_size: int) -> None:
        """Layers from `caption_channels` to `hidden_size` channels."""
        super().__init__()
        self.fc1 = nn.Linear(caption_channels, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, text_BTE: Tensor) -> Tensor:
        """(B, T, E) as (B, T, D)."""
        return self.fc2(F.gelu(self.fc1(text_BTE), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """The caption projection under its published name."""

    def __init__(self, caption_channels: int, hidden_size: int) -> None:
        """As `CaptionProjection`."""
        super().__init__()
        self.y_proj = CaptionProjection(caption_channels, hidden_size)

    def forward(self, text_BTE: Tensor) -> Tensor:
        """(B, T, E) as (B, T, D)."""
        return self.y_proj(text_BTE)


class FinalLayer(nn.Module):
    """The modulated norm, and the projection back to patches of the latent. No channels predict a variance."""

    def __init__(self, hidden_size: int, patch_size: int, channels: int) -> None:
        """Patches of `patch_size` x `patch_size` cells of `channels` channels, as `PatchEmbed` takes them."""
        super().__init__()
        self.patch_size, self.channels = patch_size, channels
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * channels)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / math.sqrt(hidden_size))

    def forward(self, x_BND: Tensor, time_BD: Tensor, size: tuple[int, int]) -> Tensor:
        """The velocity (B, C, H, W). `time_BD` is the embedded time itself, not the modulation of the blocks."""
        table, time_B1D = self.scale_shift_table.to(x_BND.dtype), time_BD[:, None].to(x_BND.dtype)
        shift_B1D, scale_B1D = (table + time_B1D).chunk(2, dim=1)
        x = self.linear(modulate(x_BND, shift_B1D, scale_B1D, chosen_kernels(), operand_dtype(x_BND)))
        height, width, p = *size, self.patch_size
        # A token has its patch row by row with the channels last, as in the published code.
        x = x.reshape(-1, height, width, p, p, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, height * p, width * p)

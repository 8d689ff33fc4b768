"""Sections `network`, `diffusion`, `grow`, `importance` and `prune`: the network, and how its depth changes."""

from dataclasses import dataclass
from typing import Literal

from model.numerics import Initialisation, Numerics
from tasks.params.checks import check, divides, positive


@dataclass(frozen=True)
class Network:
    """Shape of the diffusion transformer (SANA-1.5 section 3.1). Its depth is set by the stages that change it."""

    hidden_size: int
    """Channels of a token; a multiple of `linear_head_dim` and of `cross_heads`."""
    linear_head_dim: int
    """Channels of a head of linear self-attention; divides `hidden_size`."""
    cross_heads: int
    """Number of heads of cross-attention to the text; divides `hidden_size`."""
    mlp_ratio: float
    """Width of the Mix-FFN's hidden layer as a multiple of `hidden_size`."""
    patch_size: int
    """Side in latent pixels of the patch that becomes one token; SANA's is 1."""
    qk_norm: bool
    """Whether queries and keys are normalised in both attentions. SANA-1.5 does so (appendix C), SANA-1.0 does not."""
    numerics: Numerics
    """Whose arithmetic is used where the two differ: diffusers or nvlabs.

    `nvlabs` is the published training code. `model/numerics.py` lists the differences.
    """
    initialisation: Initialisation
    """Whose initial weights training from scratch starts from: ours or published.

    They differ in the caption norm and in cross-attention's output (`model/network.py`). The new blocks of a grown
    model follow the rules of `grow` in either case.
    """

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "linear_head_dim", "cross_heads", "mlp_ratio", "patch_size")
        divides(self, "hidden_size", "linear_head_dim")
        divides(self, "hidden_size", "cross_heads")


@dataclass(frozen=True)
class Diffusion:
    """Flow matching: the noise schedule and how training times are drawn."""

    flow_shift: float
    """The shift s of the noise level: sigma' = s*sigma / (1 + (s-1)*sigma). Training and sampling use the same."""
    logit_mean: float
    """Mean of the normal whose sigmoid is a training sample's noise level, before the shift."""
    logit_std: float
    """Standard deviation of the normal whose mean is `logit_mean`."""
    caption_dropout: float
    """Share of training samples whose caption is replaced by the empty prompt, in [0, 1).

    The network then learns the unconditional half of classifier-free guidance.
    """

    def __post_init__(self) -> None:
        positive(self, "flow_shift", "logit_std")
        check(0 <= self.caption_dropout < 1, f"caption_dropout is {self.caption_dropout}: it must be in [0, 1)")


@dataclass(frozen=True)
class Grow:
    """Depth growth (SANA-1.5 section 2.2)."""

    depth: int
    """Number of blocks of the grown model; at least the small model's."""
    strategy: Literal["partial_preservation", "cyclic", "block_replication"]
    """Way of growing: partial_preservation, cyclic or block_replication.

    The paper's choice is partial preservation, where new blocks start as the identity (SANA-1.5 section 2.2).
    """
    drop_share: float
    """Share of the last blocks left out before growing, rounded to whole blocks, in [0, 1).

    The paper leaves out the last 2 of 20, which is 0.1 (SANA-1.5 section 2.2).
    """
    init_std: float
    """Standard deviation of a new block's random weights. The paper does not give it; the published code takes 0.02."""

    def __post_init__(self) -> None:
        positive(self, "depth", "init_std")
        check(0 <= self.drop_share < 1, f"drop_share is {self.drop_share}: it must be in [0, 1)")


@dataclass(frozen=True)
class Importance:
    """Calibration of block importance (SANA-1.5 section 2.4)."""

    prompts: int
    """Number of held-out samples whose latents are noised; at least 100.

    The paper calibrates on 100 prompts (SANA-1.5 section 2.4). Their captions all differ. If the held-out split has
    fewer different captions, one sample of each is taken.
    """
    times: tuple[float, ...]
    """Noise levels, each in (0, 1). The paper does not give them."""
    batch_size: int
    """Number of samples that pass the network at once."""

    def __post_init__(self) -> None:
        positive(self, "batch_size")
        check(self.prompts >= 100, f"prompts is {self.prompts}: importance is measured on at least 100")
        check(len(self.times) > 0, "times is empty: name at least one noise level")
        check(all(0 < time < 1 for time in self.times), f"times is {self.times}: each must be in (0, 1)")


@dataclass(frozen=True)
class Prune:
    """The depths that the grown model is cut to."""

    depths: tuple[int, ...]
    """Numbers of blocks that the grown model is cut to, each below `grow.depth`.

    The paper cuts 60 blocks to 40, 30 and 20 (SANA-1.5 table 3).
    """
    random_choices: int
    """Number of random choices of blocks that the choice by importance is compared with."""

    def __post_init__(self) -> None:
        positive(self, "random_choices")
        check(all(depth > 0 for depth in self.depths), f"depths is {self.depths}: each must be above 0")
        check(len(set(self.depths)) == len(self.depths) > 0, f"depths is {self.depths}: name each depth once")

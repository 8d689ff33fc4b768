"""Sections `network`, `diffusion`, `grow`, `importance` and `prune`: the network, and how its depth changes."""

from dataclasses import dataclass
from typing import Literal

from model.numerics import Numerics
from tasks.params.checks import check, divides, positive


@dataclass(frozen=True)
class Network:
    """Shape of the diffusion transformer; its depth belongs to the stages that set it (SANA-1.5 section 3.1)."""

    hidden_size: int
    linear_head_dim: int
    cross_heads: int
    mlp_ratio: float
    patch_size: int
    qk_norm: bool
    numerics: Numerics

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "linear_head_dim", "cross_heads", "mlp_ratio", "patch_size")
        divides(self, "hidden_size", "linear_head_dim")
        divides(self, "hidden_size", "cross_heads")


@dataclass(frozen=True)
class Diffusion:
    """Flow matching: the noise schedule and how training times are drawn."""

    flow_shift: float
    logit_mean: float
    logit_std: float
    caption_dropout: float

    def __post_init__(self) -> None:
        positive(self, "flow_shift", "logit_std")
        check(0 <= self.caption_dropout < 1, f"caption_dropout is {self.caption_dropout}: it must be in [0, 1)")


@dataclass(frozen=True)
class Grow:
    """Depth growth (SANA-1.5 section 2.2)."""

    depth: int
    strategy: Literal["partial_preservation", "cyclic", "block_replication"]
    drop_share: float
    init_std: float

    def __post_init__(self) -> None:
        positive(self, "depth", "init_std")
        check(0 <= self.drop_share < 1, f"drop_share is {self.drop_share}: it must be in [0, 1)")


@dataclass(frozen=True)
class Importance:
    """Calibration of block importance (SANA-1.5 section 2.4)."""

    prompts: int
    times: tuple[float, ...]
    batch_size: int

    def __post_init__(self) -> None:
        positive(self, "batch_size")
        check(self.prompts >= 100, f"prompts is {self.prompts}: importance is measured on at least 100")
        check(len(self.times) > 0, "times is empty: name at least one noise level")
        check(all(0 < time < 1 for time in self.times), f"times is {self.times}: each must be in (0, 1)")


@dataclass(frozen=True)
class Prune:
    """The depths that the grown model is cut to."""

    depths: tuple[int, ...]
    random_choices: int

    def __post_init__(self) -> None:
        positive(self, "random_choices")
        check(all(depth > 0 for depth in self.depths), f"depths is {self.depths}: each must be above 0")
        check(len(set(self.depths)) == len(self.depths) > 0, f"depths is {self.depths}: name each depth once")

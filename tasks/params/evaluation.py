"""Sections `sampling`, `judge`, `geneval` and `report`: how pictures are drawn, scored, chosen and shown."""

from dataclasses import dataclass
from typing import Literal

from tasks.params.checks import check, positive


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn."""

    sampler: Literal["flow_dpm-solver", "flow_euler"]
    steps: int
    guidance: float
    batch_size: int

    def __post_init__(self) -> None:
        positive(self, "steps", "batch_size")
        check(self.guidance >= 1, f"guidance is {self.guidance}: it must be 1 (none) or above")


@dataclass(frozen=True)
class Judge:
    """The judge of best-of-N: a small yes/no classifier of (prompt, picture), or a vision-language model of `path`."""

    kind: Literal["trained", "vision_language"]
    path: str | None
    remote_code: bool
    time_limit: float
    prompts: int
    images_per_prompt: int
    calibration_prompts: int
    calibration_images: int
    shard_pictures: int
    steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        positive(self, "prompts", "images_per_prompt", "calibration_prompts", "calibration_images", "time_limit")
        positive(self, "steps", "batch_size", "learning_rate")
        check(
            (self.kind == "trained") == (self.path is None),
            f"path is {self.path!r} with kind {self.kind}: trained takes no path, vision_language needs one",
        )
        check(self.shard_pictures >= 0, f"shard_pictures is {self.shard_pictures}: it must be 0 or above")


@dataclass(frozen=True)
class GenEval:
    """Detector, prompts and pictures of the evaluation."""

    detector: Literal["scenes", "mask2former"]
    mask2former_path: str | None
    clip_path: str | None
    prompts: str | None
    prompts_per_task: int
    images_per_prompt: int
    images_per_pruned_prompt: int
    best_of: tuple[int, ...]
    keep: Literal[1, 4]
    shuffled_control: bool
    adaptive_means: tuple[float, ...]
    bootstrap_samples: int

    def __post_init__(self) -> None:
        positive(self, "prompts_per_task", "images_per_prompt", "images_per_pruned_prompt", "bootstrap_samples")
        check(
            all(1 <= n <= self.images_per_prompt for n in self.best_of) and len(self.best_of) > 0,
            f"best_of is {self.best_of}: each must be in [1, images_per_prompt = {self.images_per_prompt}]",
        )
        check(
            all(mean > 1 for mean in self.adaptive_means),
            f"adaptive_means is {self.adaptive_means}: each must be above 1",
        )
        for name in ("mask2former_path", "clip_path"):
            value = getattr(self, name)
            check(
                (self.detector == "mask2former") == (value is not None),
                f"{name} is {value!r} with detector {self.detector}: scenes takes no path, mask2former needs two",
            )
        check(
            self.detector == "scenes" or self.prompts is not None,
            "prompts is None with detector mask2former: the scenes' own prompts name no class that it finds",
        )


@dataclass(frozen=True)
class Report:
    """Pictures of the report."""

    grid_prompts: int
    grid_images: int

    def __post_init__(self) -> None:
        positive(self, "grid_prompts", "grid_images")

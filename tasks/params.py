"""The parameters of an experiment: frozen dataclasses, one for each section of `params.yaml`, that check themselves.

`params.yaml` is complete: every key is required, and a key that no dataclass knows stops the run before any work,
naming the file and the nearest known key. `profiles/<name>.yaml` hold partial overrides of it, or of another profile.
"""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kernels.choice import Choice
from model.numerics import CheckpointKey, Instruction, Numerics, Precision
from tasks.errors import UserError

Baseline = Literal["small", "grown"]
CAMES = ("came8bit", "came")
"""The project's own optimizers, which round bfloat16 weights stochastically and can step within the backward pass."""

PARAMS_FILE = Path("params.yaml")
PROFILES = Path("profiles")
EXTENDS = "extends"  # the one key of a profile that is no section: the profile that it is laid over


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _positive(section: Any, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        _check(value > 0, f"{name} is {value}: it must be above 0")


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _divides(section: Any, whole: str, divisor: str) -> None:
    a, b = getattr(section, whole), getattr(section, divisor)
    _check(a % b == 0, f"{whole} is {a}: it must be a multiple of {divisor} {b}")


@dataclass(frozen=True)
class Compute:
    """Where and how precisely stages compute."""

    seed: int
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    kernels: Choice
    threads: int
    branch_threads: int
    nodes: int
    processes_per_node: int
    parallelism: Literal["ddp", "fully_shard"]

    def __post_init__(self) -> None:
        _positive(self, "threads", "branch_threads", "nodes", "processes_per_node")
        _check(self.seed >= 0, f"seed is {self.seed}: it must be 0 or above")

    @property
    def world_size(self) -> int:
        """The processes on all nodes together."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Workflow:
    """Which models are scored beside the pruned ones, and how the flow schedules stages; changes no stage's result."""

    baselines: tuple[Baseline, ...]
    parallel_branches: int
    retries: int

    def __post_init__(self) -> None:
        _check(
            "grown" in self.baselines and len(set(self.baselines)) == len(self.baselines),
            f"baselines is {list(self.baselines)}: it must name grown, the cuts' measure, and each model once",
        )
        _positive(self, "parallel_branches")
        _check(self.retries >= 0, f"retries is {self.retries}: it must be 0 or above")


@dataclass(frozen=True)
class Shard:
    """Source pictures and how they are written to shards."""

    source: Literal["scenes", "folder", "webdataset", "sana"]
    path: str | None
    image_size: int
    aspect_buckets: bool
    train_samples: int
    heldout_samples: int
    samples_per_shard: int
    max_pixels: int
    max_reject_share: float
    caption_suffixes: tuple[str, ...]
    caption_score_threshold: float
    caption_temperature: float

    def __post_init__(self) -> None:
        _positive(self, "image_size", "train_samples", "heldout_samples", "samples_per_shard", "max_pixels")
        _check(0 <= self.max_reject_share < 1, f"max_reject_share is {self.max_reject_share}: it must be in [0, 1)")
        _check(
            (self.source == "scenes") == (self.path is None),
            f"path is {self.path!r} with source {self.source}: scenes take no path, all others need one",
        )
        _check(
            not self.aspect_buckets or self.image_size % 16 == 0,
            f"image_size is {self.image_size}: with aspect_buckets it must be a multiple of 16",
        )
        _positive(self, "caption_score_threshold", "caption_temperature")


@dataclass(frozen=True)
class Autoencoder:
    """The deep-compression autoencoder: loaded from `path`, or a small one trained on the shards."""

    path: str | None
    latent_channels: int
    block_channels: tuple[int, ...]
    layers_per_block: int
    steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        _positive(self, "latent_channels", "layers_per_block", "steps", "batch_size", "learning_rate")
        _check(len(self.block_channels) >= 2, "block_channels needs at least two entries (one halving of the picture)")


@dataclass(frozen=True)
class TextEncoder:
    """The decoder-only text encoder: loaded from `path`, or a small one trained on the captions."""

    path: str | None
    vocabulary: int
    hidden_size: int
    layers: int
    heads: int
    max_tokens: int
    instruction: Instruction
    precision: Precision
    steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        _positive(self, "vocabulary", "hidden_size", "layers", "heads", "max_tokens", "steps", "batch_size")
        _positive(self, "learning_rate")
        _divides(self, "hidden_size", "heads")


@dataclass(frozen=True)
class Encode:
    """How latents and text embeddings are cached."""

    batch_size: int
    samples_per_shard: int

    def __post_init__(self) -> None:
        _positive(self, "batch_size", "samples_per_shard")


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
        _positive(self, "hidden_size", "linear_head_dim", "cross_heads", "mlp_ratio", "patch_size")
        _divides(self, "hidden_size", "linear_head_dim")
        _divides(self, "hidden_size", "cross_heads")


@dataclass(frozen=True)
class Diffusion:
    """Flow matching: the noise schedule and how training times are drawn."""

    flow_shift: float
    logit_mean: float
    logit_std: float
    caption_dropout: float

    def __post_init__(self) -> None:
        _positive(self, "flow_shift", "logit_std")
        _check(0 <= self.caption_dropout < 1, f"caption_dropout is {self.caption_dropout}: it must be in [0, 1)")


@dataclass(frozen=True)
class Training:
    """A run of the training loop."""

    steps: int
    batch_size: int
    grad_accumulation: int
    optimizer: Literal["came8bit", "came", "adamw8bit", "adamw"]
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: Literal["constant", "cosine"]
    weights: Literal["float32", "bfloat16"]
    step_in_backward: bool
    clip_norm: float | None
    ema_decay: float
    evaluate_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        _positive(self, "batch_size", "grad_accumulation", "learning_rate")
        if self.clip_norm is not None:
            _positive(self, "clip_norm")
        _positive(self, "evaluate_every", "checkpoint_every")
        _check(self.steps >= 0, f"steps is {self.steps}: it must be 0 (weights stay as they are) or above")
        _check(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}: it must be 0 or above")
        _check(0 <= self.warmup_steps <= self.steps, f"warmup_steps is {self.warmup_steps}: it must be in [0, steps]")
        _check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}: it must be in [0, 1)")
        _check(
            self.batch_size % self.grad_accumulation == 0,
            f"batch_size {self.batch_size} is no multiple of grad_accumulation {self.grad_accumulation}",
        )
        self._check_bfloat16_weights()
        self._check_step_in_backward()

    def _check_bfloat16_weights(self) -> None:
        if self.weights == "float32":
            return
        _check(
            self.optimizer in CAMES,
            f"weights is bfloat16 with optimizer {self.optimizer}: it would round small updates away; {_or(CAMES)} "
            "round them stochastically",
        )
        _check(
            self.ema_decay == 0,
            f"ema_decay is {self.ema_decay} with weights bfloat16: such an average would stand still; set it to 0",
        )

    def _check_step_in_backward(self) -> None:
        if not self.step_in_backward:
            return
        why = "with step_in_backward, which keeps no gradients"
        _check(self.optimizer in CAMES, f"optimizer is {self.optimizer} with step_in_backward: choose {_or(CAMES)}")
        _check(self.clip_norm is None, f"clip_norm is {self.clip_norm} {why}: set it to null")
        _check(self.grad_accumulation == 1, f"grad_accumulation is {self.grad_accumulation} {why}: set it to 1")


@dataclass(frozen=True)
class Pretrain(Training):
    """The small model: trained from random weights or on from those of `path`; 0 steps take these over as they are."""

    path: str | None
    checkpoint_key: CheckpointKey
    depth: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "depth")
        _check(self.steps > 0 or self.path is not None, "steps is 0 and path is None: random weights need training")


@dataclass(frozen=True)
class Grow:
    """Depth growth (SANA-1.5 section 2.2)."""

    depth: int
    strategy: Literal["partial_preservation", "cyclic", "block_replication"]
    drop_share: float
    init_std: float

    def __post_init__(self) -> None:
        _positive(self, "depth", "init_std")
        _check(0 <= self.drop_share < 1, f"drop_share is {self.drop_share}: it must be in [0, 1)")


@dataclass(frozen=True)
class Importance:
    """Calibration of block importance (SANA-1.5 section 2.4)."""

    prompts: int
    times: tuple[float, ...]
    batch_size: int

    def __post_init__(self) -> None:
        _positive(self, "batch_size")
        _check(self.prompts >= 100, f"prompts is {self.prompts}: importance is measured on at least 100")
        _check(len(self.times) > 0, "times is empty: name at least one noise level")
        _check(all(0 < time < 1 for time in self.times), f"times is {self.times}: each must be in (0, 1)")


@dataclass(frozen=True)
class Prune:
    """The depths that the grown model is cut to."""

    depths: tuple[int, ...]
    random_choices: int

    def __post_init__(self) -> None:
        _positive(self, "random_choices")
        _check(all(depth > 0 for depth in self.depths), f"depths is {self.depths}: each must be above 0")
        _check(len(set(self.depths)) == len(self.depths) > 0, f"depths is {self.depths}: name each depth once")


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn."""

    sampler: Literal["flow_dpm-solver", "flow_euler"]
    steps: int
    guidance: float
    batch_size: int

    def __post_init__(self) -> None:
        _positive(self, "steps", "batch_size")
        _check(self.guidance >= 1, f"guidance is {self.guidance}: it must be 1 (none) or above")


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
        _positive(self, "prompts", "images_per_prompt", "calibration_prompts", "calibration_images", "time_limit")
        _positive(self, "steps", "batch_size", "learning_rate")
        _check(
            (self.kind == "trained") == (self.path is None),
            f"path is {self.path!r} with kind {self.kind}: trained takes no path, vision_language needs one",
        )
        _check(self.shard_pictures >= 0, f"shard_pictures is {self.shard_pictures}: it must be 0 or above")


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
        _positive(self, "prompts_per_task", "images_per_prompt", "images_per_pruned_prompt", "bootstrap_samples")
        _check(
            all(1 <= n <= self.images_per_prompt for n in self.best_of) and len(self.best_of) > 0,
            f"best_of is {self.best_of}: each must be in [1, images_per_prompt = {self.images_per_prompt}]",
        )
        _check(
            all(mean > 1 for mean in self.adaptive_means),
            f"adaptive_means is {self.adaptive_means}: each must be above 1",
        )
        for name in ("mask2former_path", "clip_path"):
            value = getattr(self, name)
            _check(
                (self.detector == "mask2former") == (value is not None),
                f"{name} is {value!r} with detector {self.detector}: scenes takes no path, mask2former needs two",
            )
        _check(
            self.detector == "scenes" or self.prompts is not None,
            "prompts is None with detector mask2former: the scenes' own prompts name no class that it finds",
        )


@dataclass(frozen=True)
class Report:
    """Pictures of the report."""

    grid_prompts: int
    grid_images: int

    def __post_init__(self) -> None:
        _positive(self, "grid_prompts", "grid_images")


@dataclass(frozen=True)
class Params:
    """Every section of `params.yaml`."""

    compute: Compute
    workflow: Workflow
    shard: Shard
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    encode: Encode
    network: Network
    diffusion: Diffusion
    pretrain: Pretrain
    grow: Grow
    train: Training
    importance: Importance
    prune: Prune
    finetune: Training
    sampling: Sampling
    judge: Judge
    geneval: GenEval
    report: Report

    def __post_init__(self) -> None:
        for name in ("pretrain", "train", "finetune"):
            self._check_ranks(name)
            _check(
                getattr(self, name).weights == "float32" or self.compute.dtype == "bfloat16",
                f"{name}.weights is bfloat16 with compute.dtype {self.compute.dtype}: set compute.dtype to bfloat16",
            )
        _check(
            self.grow.depth >= self.pretrain.depth,
            f"grow.depth {self.grow.depth} is below pretrain.depth {self.pretrain.depth}",
        )
        _check(
            all(depth < self.grow.depth for depth in self.prune.depths),
            f"prune.depths {self.prune.depths} must all be below grow.depth {self.grow.depth}",
        )
        _check(
            self.shard.source == "scenes" or self.geneval.detector != "scenes",
            f"geneval.detector is scenes with shard.source {self.shard.source}: it finds the shapes of rendered scenes "
            "only, and would score other pictures as noise; set geneval.detector to mask2former, with "
            "geneval.mask2former_path, geneval.clip_path and geneval.prompts",
        )

    def _check_ranks(self, name: str) -> None:
        """Whether a training can be had on as many processes."""
        training, count = getattr(self, name), self.compute.world_size
        if count == 1 or training.steps == 0:
            return
        on, parts = f"on {count} processes (compute.nodes x processes_per_node)", training.grad_accumulation * count
        _check(
            training.batch_size % parts == 0,
            f"{name}.batch_size is {training.batch_size} {on} with {name}.grad_accumulation "
            f"{training.grad_accumulation}: it must be a multiple of {parts}",
        )
        _check(
            not training.step_in_backward,
            f"{name}.step_in_backward is true {on}: set it to false, as a step needs the gradients of all",
        )
        _check(
            training.optimizer != "adamw8bit" or self.compute.parallelism == "ddp",
            f"{name}.optimizer is adamw8bit with compute.parallelism fully_shard: bitsandbytes steps whole parameters; "
            "choose came8bit, or ddp",
        )


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a complete params file. Raises UserError naming the key and the file."""
    return build_params(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises UserError if the file is missing, not YAML, or not a mapping."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the folder that holds params.yaml") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no mapping of sections: compare it with params.yaml")
    return value


def build_params(values: dict[str, Any], where: str) -> Params:
    """Check a nested mapping against the dataclasses; `where` names its file in errors."""
    return _build(Params, values, where, prefix="")


def apply_profile(
    values: dict[str, Any], profile: str, profiles: Path = PROFILES, extended_by: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`values` with `profiles/<profile>.yaml` merged over it, section by section; before it the profile it extends."""
    path = profiles / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in profiles.glob("*.yaml")))
        raise UserError(f"profile {profile!r} is unknown: {profiles} has {known}")
    if profile in extended_by:
        raise UserError(f"{path} extends itself by way of {', '.join(extended_by)}: take out one {EXTENDS}")
    sections = read_yaml(path)
    if base := sections.pop(EXTENDS, None):
        values = apply_profile(values, base, profiles, (*extended_by, profile))
    overrides = {
        f"{section}.{key}": value
        for section, pairs in _sections(sections, str(path)).items()
        for key, value in pairs.items()
    }
    return apply_overrides(values, overrides, str(path))


def apply_overrides(values: dict[str, Any], overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """`values` with dotted keys replaced (`finetune.steps: 50`). A key that does not exist is a UserError."""
    merged = {section: dict(pairs) for section, pairs in _sections(values, where).items()}
    known = [f"{section}.{key}" for section, pairs in values.items() for key in pairs]
    for dotted, value in overrides.items():
        if dotted not in known:
            raise _unknown(dotted, known, where)
        section, key = dotted.split(".", 1)
        merged[section][key] = value
    return merged


def _sections(values: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    for section, pairs in values.items():
        if not isinstance(pairs, dict):
            raise UserError(f"{where}: {section} is {pairs!r}: it must be a mapping of keys")
    return values


def section_values(params: Params, sections: tuple[str, ...]) -> dict[str, Any]:
    """The named sections (`network`) or keys (`compute.seed`) as plain values, for digests and logs."""
    chosen: dict[str, Any] = {}
    for name in sections:
        section, _, key = name.partition(".")
        values = dataclasses.asdict(getattr(params, section))
        chosen[name] = values[key] if key else values
    return chosen


def _unknown(key: str, known: list[str], where: str) -> UserError:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return UserError(f"{where}: unknown key {key!r}: did you mean {nearest[0]!r}?")


def _build(cls: type, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.')} is {values!r}: it must be a mapping of keys")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise _unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in hints], where)
    missing = [name for name in hints if name not in values]
    if missing:
        raise UserError(f"{where}: key {prefix + missing[0]!r} is missing: add it (params.yaml has every key)")
    built = {name: _convert(hint, values[name], where, f"{prefix}{name}") for name, hint in hints.items()}
    try:
        return cls(**built)
    except ValueError as error:
        raise UserError(f"{where}: {prefix}{error}") from None


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """`value` as the type `hint`, or a UserError naming the key. Accepts an int for a float, a list for a tuple."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        nearest = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1, cutoff=0.0)[0]
        raise UserError(f"{where}: {key} is {value!r}: it must be one of {list(arguments)}; did you mean {nearest!r}?")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where, key) for item in value)
    if origin is types.UnionType:
        return None if value is None else _convert(arguments[0], value, where, key)
    if hint is float and (type(value) in (int, float) or _is_exponent(value)):
        return float(value)
    if type(value) is hint:
        return value
    expected = getattr(hint, "__name__", None) if origin is None else "list"
    raise UserError(f"{where}: {key} is {value!r} ({type(value).__name__}): it must be {expected}")


def _is_exponent(value: Any) -> bool:
    """True for a number such as 7e-5, which YAML 1.1 takes for text because it has no dot."""
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) is not None

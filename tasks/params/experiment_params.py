"""All sections of `params.yaml`, and the checks that concern more than one section.

Every key of `params.yaml` is required. An unknown key stops the run before any work (`tasks.params.params_files`).
"""

from dataclasses import asdict, dataclass
from typing import Literal

from tasks.params.checks import check
from tasks.params.compute_params import Compute, Workflow
from tasks.params.encoder_params import Autoencoder, TextEncoder
from tasks.params.evaluation_params import Evaluation, GenEval, Judge, Matching, Report, Sampling
from tasks.params.judge_finetune_params import JudgeFinetune
from tasks.params.network_params import Diffusion, Grow, Importance, Network, Prune
from tasks.params.picture_params import Data, Encode, Shard
from tasks.params.training_params import Finetune, Pretrain, Scratch, Sft, Training
from tasks.params.typed_values import build
from tasks.system import paths
from tasks.system.errors import UserError

CUT_KINDS = ("pruned", "finetuned")
"""The kinds of models that are cut, of which each depth has one each."""
TRAININGS = ("pretrain", "train", "scratch", "finetune", "sft")
"""The sections that are runs of the training loop."""


@dataclass(frozen=True)
class Params:
    """Every section of `params.yaml`."""

    compute: Compute
    """Where and how precisely stages compute."""
    workflow: Workflow
    """Which models are scored beside the pruned ones, and how the flow schedules stages."""
    shard: Shard
    """Source pictures, and how they are written to shards."""
    data: Data
    """Data sets beside the one of `shard`, for training on other pictures."""
    autoencoder: Autoencoder
    """The deep-compression autoencoder, loaded or trained here."""
    text_encoder: TextEncoder
    """The text encoder, loaded or trained here."""
    encode: Encode
    """How many latents and text embeddings are made and stored together."""
    network: Network
    """Shape of the diffusion transformer."""
    diffusion: Diffusion
    """Flow matching: the noise schedule and how training times are drawn."""
    pretrain: Pretrain
    """Training of the small model."""
    grow: Grow
    """Growing the small model in depth (SANA-1.5 section 2.2)."""
    train: Training
    """Training of the grown model."""
    scratch: Scratch
    """Training of deep networks from random weights, the control of growth."""
    importance: Importance
    """Measuring the importance of the grown model's blocks (SANA-1.5 section 2.4)."""
    prune: Prune
    """Cutting the grown model by importance (SANA-1.5 section 2.4)."""
    finetune: Finetune
    """The short training of each cut model (SANA-1.5 section 3.3)."""
    sft: Sft
    """Supervised fine-tuning of finished models on chosen pairs (SANA-1.5 table 4)."""
    sampling: Sampling
    """How pictures are drawn."""
    judge: Judge
    """The judge that chooses the best of N pictures (SANA-1.5 section 2.5)."""
    judge_finetune: JudgeFinetune
    """Fine-tuning a vision-language model as a judge, off by default.

    SANA-1.5's judge was made so (section 2.5).
    """
    evaluation: Evaluation
    """How models are scored, and how many pictures they draw for it."""
    geneval: GenEval
    """Detector and prompts of the scorer geneval."""
    matching: Matching
    """Prompts and training of the scorer matching."""
    report: Report
    """Pictures of the report."""

    def __post_init__(self) -> None:
        for name in TRAININGS:
            self._check_ranks(name)
            self._check_data(name)
            check(
                getattr(self, name).weights == "float32" or self.compute.dtype == "bfloat16",
                f"{name}.weights is bfloat16 with compute.dtype {self.compute.dtype}: set compute.dtype to bfloat16",
            )
        check(
            self.grow.depth >= self.pretrain.depth,
            f"grow.depth {self.grow.depth} is below pretrain.depth {self.pretrain.depth}",
        )
        check(
            all(depth < self.grow.depth for depth in self.prune.depths),
            f"prune.depths {self.prune.depths} must all be below grow.depth {self.grow.depth}",
        )
        self._check_data_sets()
        scored = [*self.workflow.baselines, *(f"{kind}-{depth}" for depth in self.prune.depths for kind in CUT_KINDS)]
        for model in self.sft.models:
            check(
                model in scored,
                f"sft.models names {model!r}: choose from {', '.join(scored)}, or add small or grown to "
                "workflow.baselines, as the gain is over the model's own score",
            )
        check(
            self.evaluation.dpg_questions is None or self.judge.kind == "vision_language",
            f"evaluation.dpg_questions is {self.evaluation.dpg_questions!r} with judge.kind {self.judge.kind}: only a "
            "vision_language judge answers questions",
        )
        check(
            self.scorer == "matching" or self.shard.source == "scenes" or self.geneval.detector != "scenes",
            f"evaluation.scorer is geneval with shard.source {self.shard.source} and geneval.detector scenes: that "
            "detector finds the shapes of rendered scenes only, and would score other pictures as noise; set "
            "evaluation.scorer to matching, or geneval.detector to mask2former with its paths",
        )

        check(
            not self.judge_finetune.pictures_of or self.scorer == "geneval",
            f"judge_finetune.pictures_of is {list(self.judge_finetune.pictures_of)} with the scorer matching: "
            "GenEval's detector and rules must label the pictures; set evaluation.scorer to geneval, or pictures_of "
            "to []",
        )

    @property
    def scorer(self) -> Literal["geneval", "matching"]:
        """What scores pictures: `evaluation.scorer`, or the one that fits the pictures if it is null."""
        if self.evaluation.scorer is not None:
            return self.evaluation.scorer
        fits = self.shard.source == "scenes" or self.geneval.detector == "mask2former"
        return "geneval" if fits else "matching"

    @property
    def trainings(self) -> list[str]:
        """The sections that are runs of the training loop, but for those whose list of models is empty."""
        models = {"scratch": self.scratch.depths, "sft": self.sft.models}
        return [name for name in TRAININGS if models.get(name, True)]

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The names of the sets in `data.sets` that a section with work to do learns from."""
        used = {getattr(self, name).data for name in self.trainings}
        return tuple(name for name in self.data.sets if paths.encoded(name).name in used)

    def shard_of(self, data_set: str | None) -> Shard:
        """The pictures of a set in `data.sets`: the section `shard` with the set's own keys. None is `shard` itself.

        Raises UserError for a key or value that does not fit.
        """
        if data_set is None:
            return self.shard
        return build(Shard, asdict(self.shard) | self.data.sets[data_set], f"data.sets.{data_set}")

    def _check_data_sets(self) -> None:
        """Raise ValueError for the first set of `data.sets` that does not fit."""
        for name in self.data.sets:
            try:
                self.shard_of(name)
            except UserError as error:
                raise ValueError(str(error)) from None

    def _check_data(self, name: str) -> None:
        """Raise ValueError if the training section `name` learns from a data set that there is none of."""
        known = [paths.encoded(data_set).name for data_set in (None, *self.data.sets)]
        chosen = getattr(self, name).data
        check(chosen in known, f"{name}.data is {chosen!r}: choose from {', '.join(known)}, or add a set to data.sets")

    def _check_ranks(self, name: str) -> None:
        """Raise ValueError if the training section `name` cannot run on the processes that `compute` asks for."""
        training, count = getattr(self, name), self.compute.world_size
        if count == 1 or training.steps == 0:
            return
        on, parts = f"on {count} processes (compute.nodes x processes_per_node)", training.grad_accumulation * count
        check(
            training.batch_size % parts == 0,
            f"{name}.batch_size is {training.batch_size} {on} with {name}.grad_accumulation "
            f"{training.grad_accumulation}: it must be a multiple of {parts}",
        )
        check(
            not training.step_in_backward,
            f"{name}.step_in_backward is true {on}: set it to false, as a step needs the gradients of all",
        )
        check(
            training.optimizer != "adamw8bit" or self.compute.parallelism == "ddp",
            f"{name}.optimizer is adamw8bit with compute.parallelism {self.compute.parallelism}: "
            "bitsandbytes steps whole parameters; choose came8bit, or ddp",
        )

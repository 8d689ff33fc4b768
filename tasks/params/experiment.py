"""All sections of `params.yaml` together, and what one section asks of another.

`params.yaml` is complete: every key is required. A key that no section knows stops the run before any work
(`tasks.params.reading`).
"""

from dataclasses import dataclass

from tasks.params.checks import check
from tasks.params.compute import Compute, Workflow
from tasks.params.encoders import Autoencoder, TextEncoder
from tasks.params.evaluation import GenEval, Judge, Report, Sampling
from tasks.params.network import Diffusion, Grow, Importance, Network, Prune
from tasks.params.pictures import Encode, Shard
from tasks.params.training import Pretrain, Training


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
        check(
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
            f"{name}.optimizer is adamw8bit with compute.parallelism fully_shard: bitsandbytes steps whole parameters; "
            "choose came8bit, or ddp",
        )

"""Sections `compute` and `workflow`: where stages compute, and how the flow schedules them."""

from dataclasses import dataclass
from typing import Literal

from kernels.kernel_choice import Choice
from tasks.params.checks import check, positive

Baseline = Literal["small", "grown"]


@dataclass(frozen=True)
class Compute:
    """Where and how precisely stages compute."""

    seed: int
    """The one seed, from which every random stream is derived by name. It is 0 or above (`tasks.computing.seeds`)."""
    device: Literal["auto", "cpu", "cuda"]
    """Where stages compute: auto (CUDA where there is one), cpu or cuda."""
    dtype: Literal["float32", "bfloat16"]
    """Number format of matrix products in training and sampling: float32 or bfloat16.

    bfloat16 is mixed precision (SANA-1.5 section 3.1).
    """
    kernels: Choice
    """What the network runs on: auto (the fastest that runs here), triton or reference.

    `auto` takes the Triton kernels on CUDA and the reference, which is plain PyTorch, elsewhere.
    """
    compile: bool
    """Whether training compiles the network's blocks with torch.compile.

    Numbers then differ in their last bits. The first steps take minutes, as code is generated for them.
    """
    threads: int
    """CPU threads of a stage that runs alone: all stages up to the small model."""
    branch_threads: int
    """CPU threads of a stage that runs beside others: all stages behind the small model."""
    data_workers: int
    """Processes that read batches ahead for each training process; 0 has it read them itself.

    No result depends on it. Each worker is up to two micro-batches ahead, and has one CPU thread of its own.
    """
    nodes: int
    """Number of computers that compute one stage together; more than 1 needs Slurm.

    The stages pretrain, train and finetune@D train on all of them, and evaluate@M draws on all of them.
    """
    processes_per_node: int
    """Number of processes on each computer, one for each GPU; torchrun starts them."""
    parallelism: Literal["ddp", "fully_shard", "hybrid_shard"]
    """How training is spread over several processes: ddp, fully_shard or hybrid_shard.

    With ddp each process has a whole copy of the network; fully_shard is torch's FSDP2, where each has a share of
    the weights. hybrid_shard gives each node a whole copy, which its processes share, so that between nodes only
    sums of gradients travel, once a step.
    """

    def __post_init__(self) -> None:
        positive(self, "threads", "branch_threads", "nodes", "processes_per_node")
        for name in ("seed", "data_workers"):
            check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: it must be 0 or above")

    @property
    def world_size(self) -> int:
        """The processes on all nodes together."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Workflow:
    """Which models are scored beside the pruned ones, and how the flow schedules stages.

    No stage's result depends on `parallel_branches` and `retries`.
    """

    baselines: tuple[Baseline, ...]
    """Models that are scored beside the pruned ones: [small, grown], or [grown].

    It is [grown] where both are the same weights. `grown` must be named, since the pruned models are compared with
    it.
    """
    parallel_branches: int
    """Number of stages behind the small model that the flow runs at once."""
    retries: int
    """How often the flow runs a stage again that has failed; training stages resume."""

    def __post_init__(self) -> None:
        check(
            "grown" in self.baselines and len(set(self.baselines)) == len(self.baselines),
            f"baselines is {list(self.baselines)}: it must name grown, the cuts' measure, and each model once",
        )
        positive(self, "parallel_branches")
        check(self.retries >= 0, f"retries is {self.retries}: it must be 0 or above")

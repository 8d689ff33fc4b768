"""Sections `compute` and `workflow`: where stages compute, and how the flow schedules them."""

from dataclasses import dataclass
from typing import Literal

from kernels.choice import Choice
from tasks.params.checks import check, positive

Baseline = Literal["small", "grown"]


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
        positive(self, "threads", "branch_threads", "nodes", "processes_per_node")
        check(self.seed >= 0, f"seed is {self.seed}: it must be 0 or above")

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
        check(
            "grown" in self.baselines and len(set(self.baselines)) == len(self.baselines),
            f"baselines is {list(self.baselines)}: it must name grown, the cuts' measure, and each model once",
        )
        positive(self, "parallel_branches")
        check(self.retries >= 0, f"retries is {self.retries}: it must be 0 or above")

"""The plan: the costs of all stages, their totals, and the notes on what is assumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tasks.params.experiment_params import Params
from tasks.planning.cost_row import Cost
from tasks.planning.experiment_scale import measure_scale
from tasks.planning.gpu_hours import gpu_hours
from tasks.planning.plan_notes import notes
from tasks.planning.planned_experiment import open_experiment
from tasks.planning.stage_costs import stage_costs


@dataclass(frozen=True)
class Settings:
    """The options of the command.

    `gpus` of None means as many as params ask for, and `parallelism` of None means what params say. `teraflops` is a
    GPU's peak rate and `utilisation` the share of it that is reached. `samples` and `caption_tokens` describe the
    user's own pictures; None takes the assumptions of `tasks.planning.experiment_scale`.
    """

    gpus: int | None = None
    utilisation: float = 0.4
    teraflops: float = 312  # an A100's, bfloat16 without sparsity
    samples: int | None = None
    caption_tokens: int | None = None
    parallelism: Literal["ddp", "fully_shard", "hybrid_shard"] | None = None


@dataclass(frozen=True)
class Total:
    """The totals of a plan: operations, GPU-hours and outputs are sums, memory and state the most of any stage."""

    memory: int
    flops: int
    gpu_hours: float
    outputs: int
    state: int


@dataclass(frozen=True)
class Plan:
    """The costs of all stages, and the notes on them."""

    title: str
    settings: Settings
    costs: Sequence[Cost]
    notes: Sequence[str]

    def hours(self, flops: int) -> float:
        """The GPU-hours that so many operations take."""
        return gpu_hours(flops, self.settings.teraflops, self.settings.utilisation)

    @property
    def total(self) -> Total:
        """The totals of all stages."""
        flops = sum(cost.flops for cost in self.costs)
        return Total(
            memory=max(cost.memory.total for cost in self.costs),
            flops=flops,
            gpu_hours=self.hours(flops),
            outputs=sum(cost.outputs for cost in self.costs),
            state=max(cost.state for cost in self.costs),
        )

    def record(self) -> dict[str, Any]:
        """The plan as plain values for JSON."""
        rows = [
            {**asdict(cost), "memory": {**asdict(cost.memory), "total": cost.memory.total}}
            | {"gpu_hours": self.hours(cost.flops)}
            for cost in self.costs
        ]
        return {
            "title": self.title,
            "settings": asdict(self.settings),
            "stages": rows,
            "total": asdict(self.total),
            "notes": list(self.notes),
        }


def make_plan(params: Params, settings: Settings, name: str) -> Plan:
    """The plan of an experiment called `name`. Raises UserError for settings or params that do not fit."""
    gpu_hours(0, settings.teraflops, settings.utilisation)  # refuses bad settings before the long work begins
    scale = measure_scale(params, settings.samples, settings.caption_tokens)
    settings = replace(settings, gpus=params.compute.world_size if settings.gpus is None else settings.gpus)
    if settings.parallelism is not None:
        params = replace(params, compute=replace(params.compute, parallelism=settings.parallelism))
    experiment = open_experiment(params, scale, settings.gpus)
    costs = stage_costs(experiment)
    return Plan(f"Plan of {name}", settings, costs, notes(experiment, costs, settings.teraflops, settings.utilisation))

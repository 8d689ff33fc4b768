"""The cost of one stage."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU.

    `activations` are the tensors that a pass holds: those saved for the backward pass, or, without gradients, those
    alive at the same time. Autocast's bfloat16 copies of weights are among them, and so are gathered shards. `ema` is
    the averaged copy of the weights.
    """

    weights: int = 0
    ema: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.ema + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Cost:
    """A row of the plan.

    `outputs` and `state` are bytes on disk. The state is what training resumes from; it is deleted when the stage is
    done. A stage without a network of its own has no parameters.
    """

    stage: str
    parameters: int = 0
    memory: Memory = Memory()
    flops: int = 0
    outputs: int = 0
    state: int = 0

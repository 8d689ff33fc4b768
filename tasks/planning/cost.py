"""What one stage costs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU.

    `activations` are what a pass keeps: tensors saved for the backward pass or alive at once, and autocast's bfloat16
    copies of weights. `ema` is the averaged copy of the weights.
    """

    weights: int = 0
    ema: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.ema + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Cost:
    """A row of the plan. A stage without a network of its own has no parameters; `state` is deleted when it is done."""

    stage: str
    parameters: int = 0
    memory: Memory = Memory()
    flops: int = 0
    outputs: int = 0
    state: int = 0

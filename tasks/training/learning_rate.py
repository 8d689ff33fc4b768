"""The learning rate as a function of the step."""

import math

from tasks.params.training_params import Training

FINAL_SHARE = 0.1  # of the peak rate, at the end of the cosine


def learning_rate(training: Training, step: int) -> float:
    """The rate of update `step` (the first is 0): a linear warm-up, then constant or a cosine down to a tenth."""
    warmup = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    if training.schedule == "constant":
        return training.learning_rate * warmup
    progress = max(step - training.warmup_steps, 0) / max(training.steps - training.warmup_steps, 1)
    decay = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
    return training.learning_rate * warmup * decay

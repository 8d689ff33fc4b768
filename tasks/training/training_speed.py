"""How fast training goes, and what it waits for. These numbers are shown and go to MLflow, and to no output."""

import time
from dataclasses import dataclass

from model.network import NetworkConfig
from model.network_flops import training_flops
from tasks.computing import ranks
from tasks.system.processes import peak_memory
from tasks.training.device_peaks import peak_flops
from tasks.training.training_batch import NoisedBatch


@dataclass(frozen=True)
class Speed:
    """The speed of all ranks together, and what this one uses.

    `mfu` is the model FLOPs utilisation: the operations that forward and backward passes need
    (`model.network_flops`), as a share of the peak of this rank's GPU; None where no peak is known. Operations that
    activation checkpointing repeats do not count. `data_wait` is the share of the time in which the loop waited for a
    batch. Tokens are those of latents.
    """

    samples_per_second: float
    tokens_per_second: float
    mfu: float | None
    data_wait: float
    peak_memory_bytes: int

    def metrics(self) -> dict[str, float]:
        """The numbers by the names that MLflow shows them under."""
        numbers = {f"speed/{name}": value for name, value in vars(self).items()}
        return {name: value for name, value in numbers.items() if value is not None}

    def __str__(self) -> str:
        mfu = "" if self.mfu is None else f", MFU {self.mfu:.0%}"
        speed = f"{self.samples_per_second:.3g} samples/s, {self.tokens_per_second:.3g} tokens/s{mfu}"
        return f"{speed}, {self.data_wait:.0%} waiting for data, {self.peak_memory_bytes / 1e9:.1f} GB"


class TrainingSpeed:
    """Counts what updates take in, and divides it by the time since `restart`.

    Work that is given to a GPU counts as done, so `measure` and `restart` must be called when the GPU has finished it.
    """

    def __init__(self, config: NetworkConfig, device: str, dtype: str) -> None:
        """`dtype` is the one of matrix products: float32 or bfloat16."""
        self.config, self.device, self.peak = config, device, peak_flops(device, dtype)
        self.restart()

    def restart(self) -> None:
        """Forget what was counted: time begins anew."""
        self.started, self.waited = time.perf_counter(), 0.0
        self.samples = self.tokens = self.flops = 0

    def add(self, batch: NoisedBatch, waited: float) -> None:
        """Count this rank's rows of a batch, for which the loop waited so many seconds."""
        samples, _, height, width = batch.latents_BCHW.shape
        tokens, text_tokens = height * width // self.config.patch_size**2, batch.text_BTE.shape[1]
        self.waited += waited
        self.samples += samples
        self.tokens += samples * tokens
        self.flops += samples * training_flops(self.config, tokens, text_tokens)

    def measure(self) -> Speed | None:
        """The speed since the last `restart`, which this calls; None if no update was made since."""
        seconds, count = time.perf_counter() - self.started, ranks.world_size()
        speed = Speed(
            count * self.samples / seconds,
            count * self.tokens / seconds,
            self.flops / seconds / self.peak if self.peak else None,
            self.waited / seconds,
            peak_memory(self.device),
        )
        counted = self.samples > 0
        self.restart()
        return speed if counted else None

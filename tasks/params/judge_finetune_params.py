"""Section `judge_finetune`: the making of a judge as SANA-1.5's was made (section 2.5, appendix B). It is optional."""

from dataclasses import dataclass
from typing import Literal

from tasks.params.checks import check, positive
from tasks.params.compute_params import Baseline

Way = Literal["whole", "lora"]


@dataclass(frozen=True)
class JudgeFinetune:
    """A vision-language model is fine-tuned on yes and no, on pictures that the scorer geneval has labelled."""

    pictures_of: tuple[Baseline, ...]
    """Models that draw its pictures, of small and grown; [] is none.

    Each has a stage judge_examples@M, so that an empty list leaves these stages out.
    """
    ways: tuple[Way, ...]
    """Ways of fine-tuning: whole (all weights) and lora; [] is none.

    Each has a stage judge_finetune@W, so that an empty list leaves these stages out. lora trains low-rank matrices
    beside the linear layers (arXiv 2106.09685) and adds them to the weights at the end.
    """
    path: str | None
    """Folder of the model to fine-tune, which transformers loads for images and text.

    To use the result as the judge, name `outputs/judge_finetuned/<way>` as `judge.path` in the next run.
    """
    prompts: int
    """Most prompts to learn from, all outside GenEval's. The paper has 15,654."""
    heldout_prompts: int
    """Most other prompts, on whose pictures the judge is measured before and after."""
    images_per_prompt: int
    """Number of pictures of each prompt and model. The paper has 160."""
    batch_size: int
    """Number of pictures of an update; a multiple of `grad_accumulation`."""
    grad_accumulation: int
    """Number of parts of a batch that are computed one after another."""
    learning_rate: float
    """Peak learning rate, 2e-5 in the paper. lora usually wants about ten times as much."""
    warmup_share: float
    """Share of the updates over which the rate rises, .03 in the paper.

    Then it falls as a cosine to 0.
    """
    lora_rank: int
    """Rank of the matrices that lora trains."""
    checkpoint_every: int
    """Number of updates between states on disk that training resumes from."""

    def __post_init__(self) -> None:
        positive(self, "prompts", "heldout_prompts", "images_per_prompt", "batch_size", "grad_accumulation")
        positive(self, "learning_rate", "lora_rank", "checkpoint_every")
        check(0 <= self.warmup_share < 1, f"warmup_share is {self.warmup_share}: it must be in [0, 1)")
        check(
            self.batch_size % self.grad_accumulation == 0,
            f"batch_size {self.batch_size} is no multiple of grad_accumulation {self.grad_accumulation}",
        )
        for name in ("pictures_of", "ways"):
            values = getattr(self, name)
            check(len(set(values)) == len(values), f"{name} is {list(values)}: each can be there once")
        check(
            not self.ways or self.path is not None,
            f"path is None with ways {list(self.ways)}: name the folder of a vision-language model",
        )
        check(
            not self.ways or len(self.pictures_of) > 0,
            f"pictures_of is empty with ways {list(self.ways)}: name the models that draw the pictures, such as grown",
        )

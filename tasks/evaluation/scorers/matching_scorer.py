"""The scorer `matching`: a picture is right if its own caption fits it best among the captions of its line.

A network of the judge's class says how well a caption fits. It was trained on one half of the captioned pictures, from
other weights and with other random streams than the judge, which learns from the other half. No other stage uses it.

No publication known to us has this score. It is the retrieval accuracy by which CLIP (Radford et al. 2021) and its
followers are measured, with the network held fixed and the pictures measured instead.

Shapes: N pictures of a line, C captions of a line with its own first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.text_encoder import TextEncoder, pad
from tasks.data.picture_dataset import to_unit_range
from tasks.data.scene_vocabulary import Line
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.geneval_rules import Verdict
from tasks.evaluation.judges.judge_network import PICTURES_AT_ONCE, JudgeNetwork
from tasks.evaluation.prompts.evaluation_prompts import Prompt

NOTE = (
    "This is not GenEval. A network that was trained on half of the captioned pictures chooses a caption for each "
    "drawn picture, among its own held-out caption and others. Compare these scores only within one data set, and "
    "with the ceiling of real pictures and the floors beside them."
)


@dataclass(frozen=True)
class MatchingScorer:
    """Scores pictures by the caption that a network finds for them."""

    network: JudgeNetwork
    text_encoder: TextEncoder
    name: str = "matching"
    note: str | None = NOTE

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Every caption can be scored."""

    def score(self, line: Line, pictures: Pictures) -> list[Verdict]:
        """A verdict for each picture of (N, H, W, 3). The reason of a wrong one names the caption that fits it best."""
        captions = [line["prompt"], *line["others"]]
        logits_NC = self._logits(pictures, captions)
        # Strictly better than all others: a network that tells no captions apart must not be always right.
        correct_N = logits_NC[:, 0] > logits_NC[:, 1:].amax(dim=1)
        best_N = 1 + logits_NC[:, 1:].argmax(dim=1)
        return [
            Verdict(
                correct, "" if correct else f"expected {captions[0]!r}, fits {captions[best]!r} as well or better", {}
            )
            for correct, best in zip(correct_N.tolist(), best_N.tolist(), strict=True)
        ]

    @torch.no_grad()
    def _logits(self, pictures: Pictures, captions: Sequence[str]) -> Tensor:
        """How well (N, C) each caption fits each picture."""
        device = next(self.network.parameters()).device
        text_CTE, mask_CT = (tensor.to(device) for tensor in pad(self.text_encoder.encode(captions)))
        starts = range(0, len(pictures), PICTURES_AT_ONCE)
        parts = (to_unit_range(pictures[start : start + PICTURES_AT_ONCE]).to(device) for start in starts)
        return torch.cat([self.network(part, text_CTE, mask_CT).double() for part in parts])

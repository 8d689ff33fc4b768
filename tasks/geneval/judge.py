"""The judge of best of N: sees a prompt and a picture's pixels, and says how likely GenEval's scorer is to say yes.

SANA-1.5 (section 2.5) fine-tunes a 2B vision-language model on yes/no labels of GenEval's toolkit and compares pictures
by its "yes". The judge here answers the same question at the scale of the pictures, in two towers that meet late: a
prompt becomes a few queries, a picture a grid of features, and what the grid answers to each query (how much of it
there is, how clearly, and where) is weighed by the prompt. So a picture is read once for any number of prompts, and
nothing depends on the other pictures of a batch. The score is log P(yes).

Shapes: B pictures, L prompts, T text tokens, E caption channels, S places of the grid, R queries of a prompt, D width.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.text_encoder import TextEncoder
from tasks.data.pictures import to_unit_range
from tasks.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FACTS = 4  # what is known of a query: amount, peak, and the two coordinates of its centre


@dataclass(frozen=True)
class JudgeConfig:
    """Shape of the judge; `caption_channels` is the text encoder's."""

    caption_channels: int
    width: int = 96
    layers: int = 2
    heads: int = 4
    queries: int = 8


def convolution(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with batch norm: it learns faster here than group norm, and is fixed once trained."""
    layer = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out_channels), nn.ReLU())


class JudgeNetwork(nn.Module):
    """Yes-logits of pictures for prompts."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.tower = nn.Sequential(
            convolution(3, width // 3),
            convolution(width // 3, 2 * width // 3, stride=2),
            convolution(2 * width // 3, 2 * width // 3),
            convolution(2 * width // 3, width, stride=2),
            convolution(width, width),
            convolution(width, width),
        )
        self.text = nn.Sequential(nn.Linear(config.caption_channels, width), nn.LayerNorm(width))
        self.slots = nn.Parameter(torch.randn(config.queries, width))
        layer = nn.TransformerDecoderLayer(
            width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.reader = nn.TransformerDecoder(layer, config.layers, nn.LayerNorm(width))
        self.query = nn.Linear(width, width + 1)
        self.facts = nn.Linear(FACTS * config.queries, width)
        self.weigh = nn.Linear(config.queries * width, 2 * width)
        self.answer = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def read(self, text_LTE: Tensor, mask_LT: Tensor) -> Tensor:
        """Prompts as R slots each, (L, R, D); the mask is true where there is text."""
        slots_LRD = self.slots.expand(len(text_LTE), -1, -1)
        return self.reader(slots_LRD, self.text(text_LTE), memory_key_padding_mask=~mask_LT)

    def forward(self, pictures_B3HW: Tensor, text_LTE: Tensor, mask_LT: Tensor) -> Tensor:
        """Logits (B, L) of "yes" for every picture, in [-1, 1] and of any size, and every prompt."""
        features_BDHW = self.tower(pictures_B3HW)
        places_SX = grid(*features_BDHW.shape[2:]).to(features_BDHW)
        slots_LRD = self.read(text_LTE, mask_LT)
        query_LRD, bias_LR = self.query(slots_LRD).split([self.config.width, 1], dim=-1)
        scale = self.config.width**-0.5
        response_BLRS = torch.einsum("bds,lrd->blrs", features_BDHW.flatten(2), query_LRD * scale) + bias_LR
        present_BLRS = response_BLRS.relu()
        amount_BLR1 = present_BLRS.sum(-1, keepdim=True)
        centre_BLRX = present_BLRS @ places_SX / (amount_BLR1 + 1)
        facts = torch.cat([amount_BLR1 / 8, response_BLRS.amax(-1, keepdim=True), centre_BLRX], dim=-1)
        scale_LD, shift_LD = self.weigh(slots_LRD.flatten(1)).chunk(2, dim=-1)
        return self.answer(self.facts(facts.flatten(2)) * (1 + scale_LD) + shift_LD)[..., 0].float()


def grid(height: int, width: int) -> Tensor:
    """Places (S, 2) of a grid as (y, x) in [-1, 1]."""
    return torch.cartesian_prod(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width))


@torch.no_grad()
def log_yes(
    judge: JudgeNetwork, text_encoder: TextEncoder, pictures_PNHW3: NDArray[np.uint8], prompts: Sequence[str]
) -> NDArray[np.float64]:
    """Scores (P, N): log P(yes) of the N pictures of each of P prompts."""
    device = next(judge.parameters()).device
    scores = []
    for pictures_NHW3, text_TE in zip(pictures_PNHW3, text_encoder.encode(prompts), strict=True):
        mask_1T = torch.ones(1, len(text_TE), dtype=torch.bool, device=device)
        logits_N1 = judge(to_unit_range(pictures_NHW3).to(device), text_TE[None].to(device), mask_1T)
        scores.append(F.logsigmoid(logits_N1[:, 0].double()).cpu().numpy())
    return np.stack(scores)


def save_judge(judge: JudgeNetwork, folder: Path) -> None:
    """Write config and weights into an existing folder; the same judge gives the same bytes."""
    config = json.dumps(dataclasses.asdict(judge.config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    save_file({name: value.detach().cpu().contiguous() for name, value in judge.state_dict().items()}, folder / WEIGHTS)


def load_judge(folder: Path, device: str = "cpu") -> JudgeNetwork:
    """The judge of a folder. Raises UserError naming the folder if it is missing or does not fit."""
    try:
        judge = JudgeNetwork(JudgeConfig(**json.loads((folder / CONFIG).read_text(encoding="utf-8"))))
        judge.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError:
        raise UserError(f"{folder} is no judge: run python -m tasks.judge") from None
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit the judge: {' '.join(str(error).split())}") from None
    return judge.to(device).eval()

"""The small judge of best of N. It sees a prompt and a picture's pixels, and says how likely GenEval's scorer says yes.

SANA-1.5 (section 2.5) fine-tunes a 2B vision-language model on yes/no labels of GenEval's toolkit and compares pictures
by its "yes". The judge here answers the same question with a network as small as the pictures. A convolutional tower
turns the picture into a vector, attention over the frozen text encoder's states turns the prompt into another, and
their product is the logit of "yes". So a picture is read once for any number of prompts, and its score does not depend
on the other pictures of a batch. The score is log P(yes).

Shapes: B pictures, L prompts, T text tokens, E caption channels, R readings of a prompt, D width, V size of vectors.
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

from model.finite_numbers import check_finite_weights
from model.text_encoder import TextEncoder
from tasks.computing import ranks
from tasks.data.picture_dataset import to_unit_range
from tasks.data.stage_models import loading_models
from tasks.system.errors import UserError

PICTURES_AT_ONCE = 64
"""Pictures of a prompt that the network reads together."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class JudgeConfig:
    """The sizes of the judge: E, D, R and V. `caption_channels` (E) must be those of the text encoder."""

    caption_channels: int
    width: int = 96
    readings: int = 8
    vector: int = 128


def convolution(channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution with batch norm, which learns much faster here than group norm, and a ReLU.

    Once trained, batch norm is a fixed scale and shift, so pictures of a batch do not influence each other.
    """
    layer = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [layer, nn.BatchNorm2d(out_channels), nn.ReLU()]


class PictureReader(nn.Module):
    """Turns a picture into a vector."""

    def __init__(self, width: int, vector: int) -> None:
        super().__init__()
        third = width // 3
        self.tower = nn.Sequential(
            *convolution(3, third),
            *convolution(third, 2 * third, stride=2),
            *convolution(2 * third, 2 * third),
            *convolution(2 * third, width, stride=2),
            *convolution(width, width),
            *convolution(width, width)[:-1],  # without its ReLU: the maximum below may be negative
        )
        self.sum_up = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, vector))
        self.to(memory_format=torch.channels_last)

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        """Vectors (B, V) of pictures (B, 3, H, W) in [-1, 1], of any size.

        The mean of a feature over the picture says how much there is of it, its maximum how clearly.
        """
        features_BDS = self.tower(pictures_B3HW).flatten(2)  # S: places of the picture
        return self.sum_up(torch.cat([features_BDS.relu().mean(-1), features_BDS.amax(-1)], dim=1))


class PromptReader(nn.Module):
    """Turns a prompt into a vector and a bias."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        width = config.width
        self.tokens = nn.Sequential(nn.Linear(config.caption_channels, width), nn.LayerNorm(width))
        self.attention = nn.Linear(width, config.readings)
        self.values = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.sum_up = nn.Linear(config.readings * width, config.vector + 1)
        nn.init.normal_(
            self.attention.weight, std=2 * width**-0.5
        )  # large, so that readings look at different tokens from the start

    def forward(self, text_LTE: Tensor, mask_LT: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (L, V) and biases (L,) of prompts (L, T, E). The mask (L, T) is true where there is text."""
        tokens_LTD = self.tokens(text_LTE)
        attention_LTR = self.attention(tokens_LTD).masked_fill(~mask_LT[..., None], -torch.inf).softmax(dim=1)
        readings_LRD = self.norm(attention_LTR.transpose(1, 2) @ self.values(tokens_LTD))
        vector_LV, bias_L1 = self.sum_up(readings_LRD.flatten(1)).tensor_split([-1], dim=-1)
        return vector_LV, bias_L1[:, 0]


class JudgeNetwork(nn.Module):
    """Gives the logit of "yes" for each picture and prompt."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.picture = PictureReader(config.width, config.vector)
        self.prompt = PromptReader(config)

    def forward(self, pictures_B3HW: Tensor, text_LTE: Tensor, mask_LT: Tensor) -> Tensor:
        """Logits (B, L) of "yes" for every picture and every prompt, float32."""
        prompt_LV, bias_L = self.prompt(text_LTE, mask_LT)
        scale = self.config.vector**-0.5
        return (self.picture(pictures_B3HW) @ prompt_LV.T * scale + bias_L).float()


@torch.no_grad()
def log_yes(
    judge: JudgeNetwork, text_encoder: TextEncoder, pictures_PNHW3: NDArray[np.uint8], prompts: Sequence[str]
) -> NDArray[np.float64]:
    """Scores (P, N): log P(yes) of the N pictures of each of P prompts. Ranks share the prompts; all get all scores."""
    device = next(judge.parameters()).device

    def read(pictures_NHW3: NDArray[np.uint8], text_1TE: Tensor) -> Tensor:
        mask_1T = torch.ones(text_1TE.shape[:2], dtype=torch.bool, device=device)
        return judge(to_unit_range(pictures_NHW3).to(device), text_1TE, mask_1T)[:, 0]

    scores, texts = [], text_encoder.encode(prompts)
    for place in ranks.dealt(len(prompts)):
        pictures_NHW3, text_TE = pictures_PNHW3[place], texts[place]
        starts = range(0, len(pictures_NHW3), PICTURES_AT_ONCE)
        parts = [read(pictures_NHW3[start : start + PICTURES_AT_ONCE], text_TE[None].to(device)) for start in starts]
        scores.append(F.logsigmoid(torch.cat(parts).double()).tolist())
    return np.array(ranks.collect(scores))


def save_judge(judge: JudgeNetwork, folder: Path) -> None:
    """Write config and weights into an existing folder; the same judge gives the same bytes."""
    config = json.dumps(dataclasses.asdict(judge.config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    save_file({name: value.detach().cpu().contiguous() for name, value in judge.state_dict().items()}, folder / WEIGHTS)


def load_judge(folder: Path, device: str = "cpu") -> JudgeNetwork:
    """The judge that a folder holds.

    Raises UserError naming the folder if it is missing, does not fit, or has a weight that is not finite.
    """
    try:
        judge = JudgeNetwork(JudgeConfig(**json.loads((folder / CONFIG).read_text(encoding="utf-8"))))
        judge.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError:
        raise UserError(f"{folder} is no judge: run python -m tasks.judge") from None
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not fit the judge: {' '.join(str(error).split())}") from None
    with loading_models():
        check_finite_weights(judge.state_dict(), folder / WEIGHTS)
    return judge.to(device).eval()

"""The judge's template: the question that a vision-language judge is asked about a picture and its prompt.

The picture and the question make a conversation of one message. The chat template of the model turns it into tokens.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUESTION = (
    "You are an AI assistant specializing in image analysis and ranking. Your task is to analyze and compare image "
    "based on how well they match the given prompt.\nThe given prompt is:{prompt}. Please consider the prompt and the "
    "image to make a decision and response directly with 'yes' or 'no'.\n"
)
"""The question of the published judge, word for word (SANA-1.5 section 2.5; tools/inference_scaling of its code).

It stands here for every model; no other words were tried. "compare image" and "response directly" are the published
wording.
"""


def conversation(picture_HW3: NDArray[np.uint8], question: str) -> list[dict[str, Any]]:
    """The question about a picture (H, W, 3), in the form that transformers' chat templates take."""
    parts = [{"type": "image", "image": Image.fromarray(picture_HW3)}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]

"""The judge's template: the question that a vision-language judge is asked about a picture and its prompt.

The picture and the question make a conversation of one message. The chat template of the model turns it into tokens.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUESTION = (
    "You are an AI assistant specializing in image analysis and ranking. You are shown an image that was made for a "
    "prompt, and decide whether it shows what the prompt asks for: the objects, how many of them, their colors and "
    "where they are. The given prompt is: {prompt}. Please consider the prompt and the image to make a decision and "
    "response directly with 'yes' or 'no'"
)
"""The question of the published judge (SANA-1.5 section 2.5). The paper leaves a part out, where the words are ours.

"response directly" is the published wording.
"""


def conversation(picture_HW3: NDArray[np.uint8], question: str) -> list[dict[str, Any]]:
    """The question about a picture (H, W, 3), in the form that transformers' chat templates take."""
    parts = [{"type": "image", "image": Image.fromarray(picture_HW3)}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]

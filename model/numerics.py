"""One named setting for the places where the published code and diffusers compute SANA differently.

* `nvlabs` is the code that the published weights were trained with.
* `diffusers` is `SanaTransformer2DModel` with its schedulers and `SanaPipeline`.

Both read the same weights. A network runs best under the numerics that it was trained with.
"""

from dataclasses import dataclass
from typing import Literal

Numerics = Literal["nvlabs", "diffusers"]
Instruction = Literal["none", "sana"]
"""Which words are put before a prompt (SANA section 2.3); `model.text_encoder` has them."""
Precision = Literal["stored", "bfloat16", "int8", "int4"]
"""The precision that the weights of a text encoder have in use."""
CheckpointKey = Literal["state_dict", "state_dict_ema"]
"""The key of the weights in a published `.pth`: `state_dict` has those of the last step, the other their average."""


@dataclass(frozen=True)
class Convention:
    """What one of the two numerics stands for."""

    linear_attention_eps: float  # added to the denominator of linear attention
    cross_norm_eps: float  # added in the norms of cross-attention's queries and keys
    whole_timesteps: bool  # whether the network cuts the decimals off its times
    # Whether the padded empty prompt is read at as many tokens as the caption beside it has; else at its own tokens.
    null_keeps_caption_mask: bool
    cleans_prompts: bool  # whether prompts are lower-cased and stripped
    instruction_quote: str  # the quotation mark around "Enhanced prompt" in SANA's complex human instruction


CONVENTIONS: dict[Numerics, Convention] = {
    "nvlabs": Convention(
        1e-8,
        1e-6,
        whole_timesteps=True,
        null_keeps_caption_mask=True,
        cleans_prompts=False,
        instruction_quote='"',
    ),
    "diffusers": Convention(
        1e-15,
        1e-5,
        whole_timesteps=False,
        null_keeps_caption_mask=False,
        cleans_prompts=True,
        instruction_quote="'",
    ),
}

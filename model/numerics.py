"""Where the published code and diffusers compute SANA differently, as one named setting.

* `nvlabs`: the code that the published weights were trained with
* `diffusers`: `SanaTransformer2DModel`, its schedulers and `SanaPipeline`

Both read the same weights; a network runs best under the numerics that it was trained with.
"""

from dataclasses import dataclass
from typing import Literal

Numerics = Literal["nvlabs", "diffusers"]
Instruction = Literal["none", "sana"]
"""The words before a prompt (SANA section 2.3): see `model.text_encoder`."""
Precision = Literal["stored", "bfloat16", "int8", "int4"]
"""The precision of a text encoder's weights in use."""
CheckpointKey = Literal["state_dict", "state_dict_ema"]
"""Where a published `.pth` has its weights: those of the last step, or their average."""


@dataclass(frozen=True)
class Convention:
    """What a setting stands for."""

    linear_attention_eps: float  # added to the denominator of linear attention
    cross_norm_eps: float  # of the norms of cross-attention's queries and keys
    whole_timesteps: bool  # the network cuts the decimals off its times
    null_keeps_caption_mask: bool  # the empty prompt, padded, is read where its caption has tokens, not where it has
    cleans_prompts: bool  # prompts are lower-cased and stripped


CONVENTIONS: dict[Numerics, Convention] = {
    "nvlabs": Convention(1e-8, 1e-6, whole_timesteps=True, null_keeps_caption_mask=True, cleans_prompts=False),
    "diffusers": Convention(1e-15, 1e-5, whole_timesteps=False, null_keeps_caption_mask=False, cleans_prompts=True),
}

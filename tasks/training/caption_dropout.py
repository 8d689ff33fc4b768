"""How a caption is dropped in training: the sample gets the empty prompt instead, which guidance needs when it samples.

Shapes: B samples, T text tokens, E caption channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.numerics import CONVENTIONS, Numerics
from tasks.data.encoded_samples import EncodedBatch
from tasks.system.errors import UserError


def drop_captions(batch: EncodedBatch, null_TE: Tensor, dropped_B: Tensor, numerics: Numerics) -> tuple[Tensor, Tensor]:
    """Text (B, T, E) and mask (B, T) of a batch, with the empty prompt `null_TE` in the rows of `dropped_B`.

    The network then reads the empty prompt at the tokens where sampling under the same `numerics` reads it. Under
    `nvlabs` a row keeps the mask of its caption, so as many tokens of the padded empty prompt are read as the caption
    has. Under `diffusers` the row gets the empty prompt's own mask. All tensors are on one device. Raises UserError if
    the cached empty prompt is too short for the longest caption under `nvlabs`.
    """
    if CONVENTIONS[numerics].null_keeps_caption_mask:
        longest = batch.text_BTE.shape[1]
        if len(null_TE) < longest:
            raise UserError(
                f"the cached empty prompt has {len(null_TE)} tokens, a caption {longest}: run the stage encode again "
                f"with network.numerics {numerics}"
            )
        return torch.where(dropped_B[:, None, None], null_TE[:longest], batch.text_BTE), batch.mask_BT
    length = max(batch.text_BTE.shape[1], len(null_TE))
    text = F.pad(batch.text_BTE, (0, 0, 0, length - batch.text_BTE.shape[1]))
    mask = F.pad(batch.mask_BT, (0, length - batch.mask_BT.shape[1]))
    null = F.pad(null_TE, (0, 0, 0, length - len(null_TE)))
    null_mask = torch.arange(length, device=mask.device) < len(null_TE)
    return torch.where(dropped_B[:, None, None], null, text), torch.where(dropped_B[:, None], null_mask, mask)


def read_lengths(
    lengths: Sequence[int], dropped: Sequence[bool], null_tokens: int, numerics: Numerics
) -> Sequence[int]:
    """Tokens that the network reads of each row after `drop_captions`, from the lengths of the captions."""
    if CONVENTIONS[numerics].null_keeps_caption_mask:
        return lengths
    return [null_tokens if drop else length for length, drop in zip(lengths, dropped, strict=True)]

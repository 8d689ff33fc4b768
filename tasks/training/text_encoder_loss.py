"""The loss of the small text encoder that is trained here: the next token, and a look back to the last ones."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import pad as pad_tensor

from model.text_encoder import Reading, TextEncoder, pad
from tasks.computing.precision import autocast
from tasks.computing.seeds import derive
from tasks.data.sample_order import batch_indices
from tasks.params.experiment_params import Params
from tasks.runtime.context import Context

LOOK_BACK = 8  # tokens, the state's own included: enough to reach from a second noun to the colour of the first
IGNORED = -100  # the label that cross_entropy and transformers leave out of a loss


def reading(params: Params) -> Reading:
    """How the experiment's text encoder reads prompts: number of tokens, instruction, numerics and precision."""
    chosen = params.text_encoder
    return Reading(chosen.max_tokens, chosen.instruction, params.network.numerics, chosen.precision)


def training_loss(
    encoder: TextEncoder, head: nn.Linear, captions: list[str], context: Context
) -> Callable[[int], Tensor]:
    """The loss of each step: cross entropy of the next token, plus cross entropy of the last `LOOK_BACK` tokens."""
    params = context.params
    seed, batch_size = derive(params.compute.seed, "text encoder"), params.text_encoder.batch_size
    sequences = ended_sequences(encoder, captions)

    def loss(step: int) -> Tensor:
        indices = batch_indices(seed, step, batch_size, len(sequences))
        ids_BT, mask_BT, labels_BT = labelled_batch([sequences[index] for index in indices], context.device)
        with autocast(context.device, params.compute.dtype):
            output = encoder.model(
                input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, output_hidden_states=True
            )
            logits = head(output.hidden_states[-1]).unflatten(-1, (LOOK_BACK, -1))
        targets_BTL = look_back_targets(labels_BT)
        return output.loss + cross_entropy(logits.float().flatten(0, 2), targets_BTL.flatten(), ignore_index=IGNORED)

    return loss


def look_back_targets(labels_BT: Tensor) -> Tensor:
    """For every token the last `LOOK_BACK` tokens (B, T, L), itself last. `IGNORED` outside of the caption."""
    windows = pad_tensor(labels_BT, (LOOK_BACK - 1, 0), value=IGNORED).unfold(1, LOOK_BACK, 1)
    return windows.masked_fill(labels_BT[..., None] == IGNORED, IGNORED)


def ended_sequences(encoder: TextEncoder, captions: list[str]) -> list[Tensor]:
    """The tokens of each caption followed by the token that ends a text."""
    end = encoder.tokenizer.eos_token_id
    return [torch.tensor([*tokens, end]) for tokens in encoder.tokens(captions)]


def labelled_batch(sequences: list[Tensor], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and labels, each (B, T). The labels are the tokens, with `IGNORED` on padding."""
    ids_BT, mask_BT = (tensor.to(device) for tensor in pad(sequences))
    return ids_BT, mask_BT, ids_BT.masked_fill(~mask_BT, IGNORED)

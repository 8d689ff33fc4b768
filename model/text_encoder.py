"""The text encoder: the last hidden states of a decoder-only language model of the Gemma-2 family (SANA section 2.3).

Model and tokenizer are transformers' own, in transformers' folder format, so a published Gemma-2 loads as ours does.
As in the published code a prompt is BOS and its tokens, cut at a set length; the empty prompt, which is BOS alone, is
the null embedding of guidance. Left out is the "complex human instruction" that SANA puts before a prompt: it speaks to
a model tuned to follow instructions, which a small one is not.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    logging,
)

logging.disable_progress_bar()  # loading and saving show bars of their own, also where output is piped

PAD, EOS, BOS = SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>")  # ids 0, 1, 2, as Gemma has them
LEAST_VOCABULARY = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())


class TextEncoder:
    """A language model with its tokenizer, read out at the last hidden state."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        """Prompts are cut after `max_tokens` tokens, BOS included."""
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens

    @property
    def channels(self) -> int:
        """Channels of an embedding."""
        return self.model.config.hidden_size

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """The token ids of each caption: BOS and at most `max_tokens` - 1 more."""
        # Cut here: asking the tokenizer to do it would leave the length in the tokenizer, and in what `save` writes.
        return [tokens[: self.max_tokens] for tokens in self.tokenizer(list(captions))["input_ids"]]

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """The embedding (T_i, E) of each caption, float32, without padding.

        A caption's embedding does not depend on the others: attention is causal and padding comes last.
        """
        ids = [torch.tensor(tokens) for tokens in self.tokens(captions)]
        ids_BT, mask_BT = pad(ids)
        device = self.model.device
        decoder = self.model.get_decoder()  # without the vocabulary head, as in the published code
        states_BTE = decoder(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).last_hidden_state.float()
        return [states_TE[: len(tokens)].clone() for states_TE, tokens in zip(states_BTE, ids, strict=True)]

    def save(self, folder: Path) -> None:
        """Write transformers' folder: config, safetensors and tokenizer. The same encoder gives the same bytes."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences (T_i, ...) as one batch (B, T, ...), zero behind each, and its mask (B, T), true on the sequence."""
    lengths_B = torch.tensor([len(sequence) for sequence in sequences], device=sequences[0].device)
    padded = pad_sequence(list(sequences), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths_B[:, None]


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens: all bytes, and the words that `captions` repeat.

    It spells any text. As Gemma's, it puts BOS before a prompt, nothing after it, and pads on the right.
    Raises ValueError if the vocabulary does not hold all bytes.
    """
    if vocabulary < LEAST_VOCABULARY:
        raise ValueError(f"vocabulary is {vocabulary}: it must be {LEAST_VOCABULARY} or above, to hold every byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a word is one token wherever it stands
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, bos_token=BOS, padding_side="right"
    )


def build_text_encoder(
    tokenizer: PreTrainedTokenizerBase, hidden_size: int, layers: int, heads: int, max_tokens: int
) -> TextEncoder:
    """An untrained Gemma-2 in Gemma-2-2b's proportions: half as many key heads as heads, an MLP 4 times as wide.

    Raises ValueError if a head's channels cannot be turned in pairs by the rotary position embedding.
    """
    head_dim = hidden_size // heads
    if head_dim % 2:
        raise ValueError(f"hidden_size {hidden_size} in {heads} heads is {head_dim} for each: it must be even")
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if heads % 2 else heads // 2,
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        attn_implementation="eager",
        use_cache=False,
    )
    return TextEncoder(Gemma2ForCausalLM(config), tokenizer, max_tokens)


def load_text_encoder(folder: Path, max_tokens: int, device: str = "cpu") -> TextEncoder:
    """The frozen text encoder of a folder, ours or a published one, in its own precision and without network access.

    Raises ValueError naming the folder if it lacks a model, a tokenizer or some of the weights.
    """
    folder = Path(folder)
    for names in (("config.json",), ("tokenizer.json", "tokenizer.model")):
        if not any((folder / name).is_file() for name in names):
            raise ValueError(f"{folder} holds no text encoder: {' or '.join(names)} is missing")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype="auto",
            attn_implementation="eager",  # the one that applies Gemma-2's soft cap of attention scores everywhere
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{folder} holds no text encoder: {' '.join(str(error).split())}") from None
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights of its language model, {missing[0]} first")
    if not tokenizer("")["input_ids"]:
        raise ValueError(f"{folder} has a tokenizer without BOS: the empty prompt would have no embedding")
    return TextEncoder(model.to(device).eval().requires_grad_(False), tokenizer, max_tokens)

"""The text encoder: the last hidden states of a decoder-only language model of the Gemma-2 family (SANA section 2.3).

Model and tokenizer are transformers' own, in transformers' folder format, so a published Gemma-2 loads as ours does.
The file `reading.json` beside them says how prompts are put to the model, so that every user of the folder does it in
the same way.
"""

import dataclasses
import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    logging,
)

from model.finite_numbers import check_finite_weights
from model.numerics import CONVENTIONS, Instruction, Numerics, Precision
from model.weights.folder_contents import contents_of

logging.disable_progress_bar()  # transformers shows bars while it loads and saves, even where output is piped

PAD, EOS, BOS = SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>")  # ids 0, 1, 2, as Gemma has them
LEAST_VOCABULARY = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())
READING = "reading.json"
QUOTED = "'Enhanced prompt'"
"""The words of the instruction that the two conventions quote in different ways, as diffusers has them."""


@dataclass(frozen=True)
class Reading:
    """How prompts are put to the language model.

    `max_tokens` is the length of the longest embedding. With the instruction `sana`, SANA's "complex human instruction"
    goes before a prompt, and of the instruction's tokens only BOS and the last are kept. `numerics` decides how the
    empty prompt is embedded, whether prompts are lower-cased and stripped, and how the instruction is quoted.
    `precision` is the precision of the weights in use: as stored, or made smaller when they are loaded (int8 and int4
    by bitsandbytes). Raises ValueError if `max_tokens` is below 2.
    """

    max_tokens: int
    instruction: Instruction
    numerics: Numerics
    precision: Precision

    def __post_init__(self) -> None:
        """Check `max_tokens`: BOS and one token more are the least."""
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens is {self.max_tokens}: it must be 2 or above")


def instruction_text(instruction: Instruction, numerics: Numerics) -> str:
    """The words before a prompt, as the convention `numerics` has them.

    diffusers has them as a default argument of its pipeline, line by line. The published configs of NVlabs
    (`text_encoder.chi_prompt`) have the same lines, but put "Enhanced prompt" in double quotes. Attention is causal, so
    this one mark changes the embedding of every token behind it, and so of every prompt.
    """
    if instruction == "none":
        return ""
    from diffusers import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    text, quote = "\n".join(lines), CONVENTIONS[numerics].instruction_quote
    if QUOTED not in text:
        raise ValueError(f"diffusers' instruction has no {QUOTED}: this release of it has other words")
    return text.replace(QUOTED, f"{quote}Enhanced prompt{quote}")


class TextEncoder:
    """A language model with its tokenizer, read out at the last hidden state."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reading: Reading) -> None:
        """Count the tokens of the instruction, BOS among them."""
        self.model, self.tokenizer, self.reading = model, tokenizer, reading
        self._instruction = instruction_text(reading.instruction, reading.numerics)
        self._instruction_tokens = len(tokenizer(self._instruction)["input_ids"]) if self._instruction else 1

    @property
    def channels(self) -> int:
        """How many channels an embedding has."""
        return self.model.config.hidden_size

    def tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """The token ids of instruction and caption, cut so that the embedding has at most `max_tokens` tokens."""
        # They are cut here. A tokenizer that is asked to cut keeps the length, and `save` would write it.
        longest = self._instruction_tokens + self.reading.max_tokens - self._kept_before()
        return [tokens[:longest] for tokens in self.tokenizer([*map(self._prepare, captions)])["input_ids"]]

    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """The embedding (T_i, E) of each caption, float32, without padding.

        It has BOS, the last token of the instruction if there is one, and the tokens of the caption. It does not depend
        on the other captions, since attention is causal and padding comes last.
        """
        embedded = self._embed([torch.tensor(tokens) for tokens in self.tokens(captions)])
        if not self._instruction:
            return embedded
        return [torch.cat([states_TE[:1], states_TE[self._instruction_tokens - 1 :]]) for states_TE in embedded]

    def encode_null(self) -> Tensor:
        """The embedding (T, E) of the empty prompt, which never has the instruction before it.

        It is BOS alone. Under `nvlabs` it is padded to `max_tokens`, since there the network reads it at as many tokens
        as a caption has.
        """
        ids_T = torch.tensor(self.tokenizer("")["input_ids"])
        if not CONVENTIONS[self.reading.numerics].null_keeps_caption_mask:
            return self._embed([ids_T])[0]
        padded_T = torch.full((self.reading.max_tokens,), self.tokenizer.pad_token_id)
        padded_T[: len(ids_T)] = ids_T
        mask_T = torch.arange(len(padded_T)) < len(ids_T)
        return self._states(padded_T[None], mask_T[None])[0]

    def save(self, folder: Path) -> None:
        """Write transformers' folder and `reading.json`. The same encoder gives the same bytes."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_reading(self.reading, folder)

    def _prepare(self, caption: str) -> str:
        """The text that is tokenised for a caption."""
        prepared = caption.lower().strip() if CONVENTIONS[self.reading.numerics].cleans_prompts else caption
        return self._instruction + prepared

    def _kept_before(self) -> int:
        """How many tokens of the embedding come before the caption's: BOS, and the last token of the instruction."""
        return 2 if self._instruction else 1

    def _embed(self, ids: Sequence[Tensor]) -> list[Tensor]:
        """The states (T_i, E) of token sequences."""
        states_BTE = self._states(*pad(ids))
        # A view would keep the padding of the whole batch in memory.
        return [states_TE[: len(tokens)].clone() for states_TE, tokens in zip(states_BTE, ids, strict=True)]

    @torch.no_grad()
    def _states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The last hidden states (B, T, E), float32; those of padding are meaningless."""
        device = self.model.device
        decoder = self.model.get_decoder()  # the model without its vocabulary head, as in the published code
        return decoder(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).last_hidden_state.float()


def save_reading(reading: Reading, folder: Path) -> None:
    """Write `reading.json` into the folder of a language model."""
    text = json.dumps(dataclasses.asdict(reading), indent=2, sort_keys=True) + "\n"
    (folder / READING).write_text(text, encoding="utf-8")


def load_reading(folder: Path) -> Reading:
    """What `reading.json` in a folder says. Raises ValueError that names the file if it is missing or broken."""
    try:
        return Reading(**json.loads((folder / READING).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / READING} cannot be read ({error}): run python -m tasks.text_encoder") from None


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences (T_i, ...) as one batch (B, T, ...), with zeros behind each, and the mask (B, T) that hides them."""
    lengths_B = torch.tensor([len(sequence) for sequence in sequences], device=sequences[0].device)
    padded = pad_sequence(list(sequences), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths_B[:, None]


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens: all bytes, and the words that `captions` repeat.

    It can spell any text. Like Gemma's tokenizer it puts BOS before a prompt and nothing after it, and pads on the
    right. Raises ValueError if the vocabulary has no room for all bytes.
    """
    if vocabulary < LEAST_VOCABULARY:
        raise ValueError(f"vocabulary is {vocabulary}: it must be {LEAST_VOCABULARY} or above, to hold every byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=True
    )  # so that a word is one token at the start, too
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
    tokenizer: PreTrainedTokenizerBase, hidden_size: int, layers: int, heads: int, reading: Reading
) -> TextEncoder:
    """An untrained Gemma-2 in Gemma-2-2b's proportions: half as many key heads as heads, and an MLP 4 times as wide.

    Raises ValueError if a head has an odd number of channels: the rotary position embedding turns them in pairs.
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
        num_key_value_heads=heads if heads % 2 else heads // 2,  # heads must be a multiple of it
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        attn_implementation="eager",
        use_cache=False,
    )
    return TextEncoder(Gemma2ForCausalLM(config), tokenizer, reading)


def load_text_encoder(folder: Path, device: str = "cpu", reading: Reading | None = None) -> TextEncoder:
    """The frozen text encoder of a folder. The network is never asked.

    `reading`, if it is given, is taken instead of the folder's `reading.json`, which a published folder does not have.
    Raises ValueError that names the folder if it lacks a model, a tokenizer or some of the weights, or if a weight is
    not finite.
    """
    folder = Path(folder)
    reading = reading or load_reading(folder)
    for names in (("config.json",), ("tokenizer.json", "tokenizer.model")):
        if not any((folder / name).is_file() for name in names):
            missing = " or ".join(names)
            raise ValueError(f"{folder} holds no text encoder: {missing} is missing, there is {contents_of(folder)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            **_weights_in(reading.precision, device),
            attn_implementation="eager",  # on every device it applies Gemma-2's soft cap of attention scores
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} holds no text encoder: {reason} (there is {contents_of(folder)})") from None
    if missing := sorted(report["missing_keys"]):
        unknown = sorted(report["unexpected_keys"])
        others = f", and has {len(unknown)} that it does not know, {unknown[0]} first" if unknown else ""
        raise ValueError(f"{folder} lacks {len(missing)} weights of its language model, {missing[0]} first{others}")
    check_finite_weights(dict(model.named_parameters()), folder)
    # The empty prompt is BOS alone.
    if not tokenizer("")["input_ids"]:
        raise ValueError(f"{folder} has a tokenizer without BOS: the empty prompt would have no embedding")
    # bitsandbytes has put its weights on the device already, and does not let them be moved.
    model = model if reading.precision in ("int8", "int4") else model.to(device)
    return TextEncoder(model.eval().requires_grad_(False), tokenizer, reading)


def _weights_in(precision: Precision, device: str) -> dict[str, object]:
    """The arguments that make transformers load weights in this precision."""
    if precision == "stored":
        return {"dtype": "auto"}
    if precision == "bfloat16":
        return {"dtype": torch.bfloat16}
    smaller = BitsAndBytesConfig(
        load_in_8bit=precision == "int8",
        load_in_4bit=precision == "int4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": torch.bfloat16, "quantization_config": smaller, "device_map": {"": device}}

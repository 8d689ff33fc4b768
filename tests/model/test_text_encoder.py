"""Claims about the text encoder: it is transformers' Gemma-2, read out at the last hidden state without padding."""

import inspect
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, SanaPipeline
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.numerics import Instruction, Numerics, Precision
from model.text_encoder import (
    LEAST_VOCABULARY,
    Reading,
    TextEncoder,
    build_text_encoder,
    instruction_text,
    load_text_encoder,
    pad,
    train_tokenizer,
)

CAPTIONS = [
    "a photo of a red circle and a blue square",
    "a photo of a circle",
    "a photo of three triangles",
    "a photo of a ring left of a cross",
]
MAX_TOKENS = 12


def reading(
    max_tokens: int = MAX_TOKENS,
    instruction: Instruction = "none",
    numerics: Numerics = "diffusers",
    precision: Precision = "stored",
) -> Reading:
    return Reading(max_tokens, instruction, numerics, precision)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 2, LEAST_VOCABULARY + 100)
    return build_text_encoder(tokenizer, hidden_size=32, layers=2, heads=4, reading=reading())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_embedding_is_the_last_hidden_state_that_transformers_gives_for_the_saved_folder(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    encoder.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True, attn_implementation="eager")
    for caption, embedding in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        inputs = tokenizer(caption, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=0)


def test_embedding_is_the_same_alone_and_in_a_batch(encoder: TextEncoder) -> None:
    for caption, together in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        torch.testing.assert_close(encoder.encode([caption])[0], together, atol=1e-5, rtol=0)


def test_embedding_of_a_prompt_begins_with_bos_and_has_unit_size(encoder: TextEncoder) -> None:
    null = encoder.encode_null()
    assert null.shape == (1, encoder.channels)
    assert encoder.tokens([""]) == [[encoder.tokenizer.bos_token_id]]
    for embedding in encoder.encode(CAPTIONS):
        torch.testing.assert_close(embedding[:1], null, atol=1e-5, rtol=0)  # attention is causal
        assert embedding.square().mean().sqrt() == pytest.approx(1, abs=0.05)


def test_prompt_longer_than_the_limit_is_cut_and_its_beginning_unchanged(encoder: TextEncoder) -> None:
    long = encoder.encode([" and ".join(CAPTIONS)])[0]
    assert long.shape[0] == MAX_TOKENS
    whole = TextEncoder(encoder.model, encoder.tokenizer, reading(1000)).encode([" and ".join(CAPTIONS)])[0]
    torch.testing.assert_close(long, whole[:MAX_TOKENS], atol=1e-5, rtol=0)


def test_text_encoder_read_back_from_its_folder_is_the_same(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = load_text_encoder(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(CAPTIONS), encoder.encode(CAPTIONS), strict=True))
    assert loaded.encode(CAPTIONS)[0].dtype == torch.float32
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


def test_text_encoder_writes_the_same_bytes_before_and_after_use(encoder: TextEncoder, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    encoder.save(first)
    TextEncoder(encoder.model, encoder.tokenizer, reading(3)).encode(CAPTIONS)
    encoder.save(second)
    assert files(first) == files(second)


def test_tokenizer_spells_any_text_and_knows_the_words_of_its_captions(encoder: TextEncoder) -> None:
    tokenizer = encoder.tokenizer
    for text in ("Zwölf Boxkämpfer, 東京 🙂 <bos", *CAPTIONS):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert tokenizer.tokenize("a circle of a circle") == ["Ġa", "Ġcircle", "Ġof", "Ġa", "Ġcircle"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)


def test_vocabulary_without_room_for_every_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary is 258: it must be 259 or above"):
        train_tokenizer(CAPTIONS, LEAST_VOCABULARY - 1)


def test_padding_is_zero_where_the_mask_is_false_and_nothing_else_changes() -> None:
    embeddings = [torch.randn(length, 5) for length in (3, 1, 4)]
    text, mask = pad(embeddings)
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [3, 1, 4]
    assert torch.equal(text[mask], torch.cat(embeddings))
    assert torch.count_nonzero(text[~mask]) == 0


def test_folder_without_a_text_encoder_is_refused_in_one_line(encoder: TextEncoder, tmp_path: Path) -> None:
    without_tokenizer = tmp_path / "without_tokenizer"
    encoder.model.save_pretrained(without_tokenizer)
    for folder in (tmp_path / "absent", without_tokenizer):
        with pytest.raises(ValueError) as raised:
            load_text_encoder(folder, reading=reading(MAX_TOKENS))
        assert str(raised.value).startswith(f"{folder} holds no text encoder") and "\n" not in str(raised.value)


def pipeline_of(encoder: TextEncoder) -> SanaPipeline:
    """diffusers' pipeline around this text encoder; what it draws with is not asked here."""
    return SanaPipeline(encoder.tokenizer, encoder.model.get_decoder(), None, None, DPMSolverMultistepScheduler())


@pytest.mark.parametrize("instruction", ["none", "sana"])
def test_prompts_are_embedded_as_diffusers_pipeline_embeds_them(encoder: TextEncoder, instruction: Instruction) -> None:
    ours = TextEncoder(encoder.model, encoder.tokenizer, reading(instruction=instruction))
    prompts = ["A Photo of a Red circle ", "", " and ".join(CAPTIONS)]
    default = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    with torch.no_grad():
        embeddings, masks, nulls, null_masks = pipeline_of(encoder).encode_prompt(
            prompts,
            device=torch.device("cpu"),
            max_sequence_length=MAX_TOKENS,
            complex_human_instruction=default if instruction == "sana" else None,
        )
    assert len(default) > 1 and masks[2].all()
    for embedding, expected, mask in zip(ours.encode(prompts), embeddings, masks.bool(), strict=True):
        torch.testing.assert_close(embedding, expected[mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.encode_null(), nulls[0][null_masks[0].bool()], atol=2e-5, rtol=0)


def test_each_convention_has_the_instruction_that_its_weights_were_trained_with(encoder: TextEncoder) -> None:
    default = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    first, *others = instruction_text("sana", "nvlabs").split("\n")
    assert first == (
        'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for '
        "image generation. Evaluate the level of detail in the user prompt:"
    )  # configs/sana1-5_config/1024ms of the published code, text_encoder.chi_prompt
    assert others == default[1:] and others[-1] == "User Prompt: "
    assert instruction_text("sana", "diffusers").split("\n") == default
    theirs, ours = (
        TextEncoder(encoder.model, encoder.tokenizer, reading(instruction="sana", numerics=n))
        for n in ("nvlabs", "diffusers")
    )
    caption = "a photo of a circle"
    told, drawn = theirs.encode([caption])[0], ours.encode([caption])[0]
    assert len(told) == len(drawn) and (told[1:] != drawn[1:]).any(dim=1).all()  # all but BOS, which comes first


def test_under_nvlabs_prompts_keep_their_capitals_and_the_empty_one_is_padded(encoder: TextEncoder) -> None:
    theirs, ours = (TextEncoder(encoder.model, encoder.tokenizer, reading(numerics=n)) for n in ("nvlabs", "diffusers"))
    assert theirs.tokens(["A Red circle"]) != ours.tokens(["A Red circle"]) == theirs.tokens(["a red circle"])
    padded = encoder.tokenizer("", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
    with torch.no_grad():
        expected = encoder.model.get_decoder()(**padded).last_hidden_state[0]
    torch.testing.assert_close(theirs.encode_null(), expected, atol=1e-5, rtol=0)
    assert ours.encode_null().shape == (1, encoder.channels)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.03), ("int8", 0.1), ("int4", 0.4)])
def test_smaller_weights_give_nearly_the_same_embedding(tmp_path: Path, precision: Precision, bound: float) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 2, LEAST_VOCABULARY + 100)
    encoder = build_text_encoder(tokenizer, hidden_size=128, layers=2, heads=4, reading=reading())
    encoder.save(tmp_path)
    exact = encoder.encode(CAPTIONS)
    smaller = load_text_encoder(tmp_path, reading=reading(precision=precision))
    stored = sum(weight.numel() * weight.element_size() for weight in encoder.model.parameters())
    assert sum(weight.numel() * weight.element_size() for weight in smaller.model.parameters()) < stored
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(smaller.encode(CAPTIONS), exact, strict=True)]
    assert 0 < max(errors) < bound

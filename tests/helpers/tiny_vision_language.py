"""Vision-language models of real transformers classes with a few thousand random weights, saved as folders."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tasks.evaluation.judges.judge_template import QUESTION

CHAT = (
    "{% for message in messages %}user: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)


def tokenizer(answers: tuple[str, ...] = ("yes", "no"), vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows the question's words, and of the answers those that are given, whole."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevel()
    words = [f"{space}{word}" for answer in answers for word in (answer, answer.capitalize()) for space in ("", " ")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator([word for word in words for _ in range(50)] + [QUESTION] * 2, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def language(words: PreTrainedTokenizerFast) -> LlamaConfig:
    """The half that reads and answers; weights are large, so that answers differ."""
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )


def save_llava(folder: Path, seed: int = 0, chat: str | None = CHAT, answers: tuple[str, ...] = ("yes", "no")) -> Path:
    """A LLaVA that sees pictures as 16 pixels, with its processor, in `folder`."""
    torch.manual_seed(seed)
    words = tokenizer(answers)
    sight = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    token = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=sight, text_config=language(words), image_token_index=token)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    ).save_pretrained(folder)
    return folder


def save_idefics3(folder: Path, seed: int = 0) -> Path:
    """An Idefics3 that sees pictures as 16 pixels in four parts, with its processor, in `folder`."""
    torch.manual_seed(seed)
    words = tokenizer()
    words.add_special_tokens(
        {"additional_special_tokens": ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]}
    )
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    processor = Idefics3Processor(pictures, words, image_seq_len=1, chat_template=CHAT)
    sight = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = Idefics3Config(
        vision_config=sight,
        text_config=language(words),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


OWN_CODE = """
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration, LlavaProcessor, PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own_vila"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config, *args, **kwargs):
        super().__init__(config)
        self.llm = LlavaForConditionalGeneration.from_pretrained(config._name_or_path + "/llm").eval()
        self.processor = LlavaProcessor.from_pretrained(config._name_or_path + "/llm")
        self.tokenizer = self.processor.tokenizer
        self.asked = []

    @classmethod
    def from_pretrained(
        cls,
        name=None,
        *args,
        config=None,
        cache_dir=None,
        ignore_mismatched_sizes=False,
        force_download=False,
        local_files_only=False,
        token=None,
        revision="main",
        use_safetensors=None,
        weights_only=True,
        **kwargs,
    ):
        return cls._from_config(AutoConfig.from_pretrained(name, trust_remote_code=True), **kwargs)

    @torch.inference_mode()
    def generate_content(self, prompt):
        self.asked.append(prompt)
        parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in prompt]
        text = self.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        pictures = [part for part in prompt if not isinstance(part, str)]
        inputs = self.processor(text=[text], images=pictures, return_tensors="pt")
        made = self.llm.generate(
            **inputs, max_new_tokens=2, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        decoded = self.tokenizer.decode(made.sequences[0, -2:], skip_special_tokens=True).strip()
        return decoded, made.scores
"""
"""Code in the manner of NVILA's `modeling_vila.py`: an own `from_pretrained`, a tokenizer, and `generate_content`."""


def save_with_own_code(folder: Path, seed: int = 0) -> Path:
    """A folder as NVILA's: no class of transformers knows it, and its code asks a LLaVA in the folder `llm` below."""
    save_llava(folder / "llm", seed)
    mapped = {name: "modeling_own.OwnModel" for name in ("AutoModel", "AutoModelForCausalLM")}
    config = {
        "model_type": "own_vila",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", **mapped},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_own.py").write_text(OWN_CODE, encoding="utf-8")
    return folder

"""The autoencoder, text encoder and judge of an experiment as modules without data, so that their costs can be counted.

Of a folder that params.yaml names, only the config is read. If the folder is not there yet, the published model stands
in: DC-AE f32c32 as diffusers' conversion script configures it for SANA, or Gemma-2-2b with transformers' defaults.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from model.autoencoder import Autoencoder, AutoencoderDC, build_autoencoder
from model.text_encoder import Gemma2Config, Gemma2ForCausalLM, build_text_encoder, train_tokenizer
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork
from tasks.params.experiment_params import Params
from tasks.params.user_files import own_path
from tasks.planning.count_without_data import emptied, without_data
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.training.text_encoder_loss import reading

CONFIG = "config.json"
CONVOLUTIONAL, ATTENTIVE = ("ResBlock",) * 3, ("EfficientViTBlock",) * 3
DC_AE = {
    "latent_channels": 32,
    "encoder_block_types": (*CONVOLUTIONAL, *ATTENTIVE),
    "decoder_block_types": (*CONVOLUTIONAL, *ATTENTIVE),
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
"""diffusers, scripts/convert_dcae_to_diffusers.py, dc-ae-f32c32-sana-1.0: 312 million parameters."""

GEMMA_2_2B = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "dtype": "bfloat16",
}
"""Gemma 2 (arXiv 2408.00118), table 1: 2,614 million parameters, published in bfloat16."""


@dataclass(frozen=True)
class Vocabulary:
    """Stands in for a tokenizer, with the attributes that a model and its training use."""

    size: int
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class Encoders:
    """The frozen networks of an experiment; none of their tensors has data."""

    autoencoder: Autoencoder
    text_encoder: Gemma2ForCausalLM
    judge: JudgeNetwork
    stand_ins: tuple[str, ...]  # the keys of params.yaml for whose folder a published model stands in

    @property
    def caption_channels(self) -> int:
        """Channels of a caption's embedding."""
        return self.text_encoder.config.hidden_size


def build_encoders(params: Params, captions: Sequence[str]) -> Encoders:
    """The encoders of an experiment.

    A small text encoder's tokenizer is trained on these captions. Without captions, its vocabulary is assumed to be as
    large as params.yaml allows.
    """
    stand_ins = []
    autoencoder, published = _autoencoder(params)
    stand_ins += ["autoencoder.path"] * published
    text_encoder, published = _text_encoder(params, captions)
    stand_ins += ["text_encoder.path"] * published
    judge = without_data(lambda: JudgeNetwork(JudgeConfig(text_encoder.config.hidden_size)))
    return Encoders(autoencoder, text_encoder, judge, tuple(stand_ins))


def _autoencoder(params: Params) -> tuple[Autoencoder, bool]:
    """The autoencoder, and whether the published one stands in for a folder that is not there."""
    chosen = params.autoencoder
    try:
        if chosen.path is None:
            shape = chosen.latent_channels, chosen.block_channels, chosen.layers_per_block
            return _wrapped(lambda: build_autoencoder(*shape).network), False
        config = _folder_config(chosen.path)
        return _wrapped(lambda: AutoencoderDC.from_config(config or DC_AE)), config is None
    except (ValueError, TypeError) as error:
        raise UserError(f"params.yaml: autoencoder: {error}") from None


def _wrapped(make: Callable[[], AutoencoderDC]) -> Autoencoder:
    with torch.device("meta"):
        autoencoder = Autoencoder(make())
    emptied(autoencoder.network)
    return autoencoder


def _text_encoder(params: Params, captions: Sequence[str]) -> tuple[Gemma2ForCausalLM, bool]:
    """The language model, and whether the published one stands in for a folder that is not there."""
    chosen = params.text_encoder
    try:
        if chosen.path is None:
            words = Vocabulary(len(train_tokenizer(captions, chosen.vocabulary)) if captions else chosen.vocabulary)
            plain = replace(
                reading(params), instruction="none"
            )  # an instruction needs a real tokenizer, the modules do not
            shape = chosen.hidden_size, chosen.layers, chosen.heads, plain
            return without_data(lambda: build_text_encoder(words, *shape).model), False
        found = _folder_config(chosen.path)
        # eager is the attention with which the stages load the text encoder
        config = Gemma2Config(**(found or GEMMA_2_2B), attn_implementation="eager", use_cache=False)
    except (ValueError, TypeError) as error:
        raise UserError(f"params.yaml: text_encoder: {error}") from None
    return without_data(lambda: Gemma2ForCausalLM(config).to(config.dtype or torch.float32)), found is None


def _folder_config(path: str) -> dict[str, object] | None:
    """The `config.json` of a folder that params.yaml names, or None if it is not there."""
    file = own_path(path) / CONFIG
    return read_json(file) if file.is_file() else None


def parameters_of(module: nn.Module) -> int:
    """The number of a module's trained values. A tensor that two layers share counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def bytes_of(module: nn.Module) -> int:
    """The bytes of a module's parameters and buffers."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return sum(prod(tensor.shape) * tensor.element_size() for tensor in tensors)

"""Small random models of the classes that GenEval's detector is made of, saved as transformers saves them."""

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from tasks.evaluation.prompts.object_class_names import class_names

BYTES = "abcdefghijklmnopqrstuvwxyz-"


def write_mask2former(folder: Path, classes: int = 80, queries: int = 6, seed: int = 0) -> None:
    """A Mask2Former on a tiny Swin whose queries are sure of a class each, for pictures of about 64 pixels."""
    torch.manual_seed(seed)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    names = class_names()[:classes]
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=queries,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # random heads are sure of nothing: spread what they say
        model.class_predictor.weight.mul_(120)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 107}).save_pretrained(folder)


def write_clip(folder: Path, seed: int = 0) -> None:
    """A CLIP with pictures of 32 pixels and a tokenizer that spells by letters."""
    torch.manual_seed(seed)
    vocabulary = ["<|startoftext|>", *BYTES, *(f"{letter}</w>" for letter in BYTES), "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[])
    start, end = 0, len(vocabulary) - 1
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, initializer_factor=3.0)
    model = CLIPModel(config)
    with torch.no_grad():  # else pictures and words hardly reach the one token that is read
        for name, weight in model.named_parameters():
            if "patch_embedding" in name or "token_embedding" in name or "_proj.weight" in name:
                weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)

"""Small random models of the published models' classes, each in a folder as its library saves it, and data for them."""

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SanaTransformer2DModel
from PIL import Image

from model.autoencoder import build_autoencoder
from model.network import NetworkConfig, Sana
from model.text_encoder import Reading, build_text_encoder, instruction_text, train_tokenizer
from tests.helpers.small_detector import write_clip, write_mask2former
from tests.helpers.tiny_vision_language import save_idefics3

TEXT_CHANNELS, LATENT_CHANNELS = 16, 4
WORDS = ("a photo of a bicycle", "a photo of a red cup", "two trains beside a dog", "a cat left of a vase")
LINES: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bicycle", "count": 1}], "prompt": "a photo of a bicycle"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
]
PATHS = {
    "shard.path": "data",
    "autoencoder.path": "autoencoder",
    "text_encoder.path": "gemma",
    "judge.path": "judge",
    "geneval.mask2former_path": "mask2former",
    "geneval.clip_path": "clip",
    "geneval.prompts": "prompts.jsonl",
}
"""The params that name the folders which `write_folders` writes, below it."""


def write_folders(root: Path, pictures: int) -> None:
    """Data of so many pictures, prompts, and every model but the network itself; seeds are fixed."""
    torch.manual_seed(0)
    root.mkdir()
    build_autoencoder(LATENT_CHANNELS, (8, 8), 1).save(root / "autoencoder")
    write_gemma(root / "gemma")
    write_mask2former(root / "mask2former")
    write_clip(root / "clip")
    save_idefics3(root / "judge")
    write_sana_shards(root / "data", pictures)
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")


def write_gemma(folder: Path) -> None:
    """A Gemma-2 and its tokenizer as transformers saves them."""
    tokenizer = train_tokenizer([*WORDS, *[instruction_text("sana", "nvlabs")] * 2], 512)
    encoder = build_text_encoder(tokenizer, TEXT_CHANNELS, 1, 2, Reading(300, "none", "diffusers", "stored"))
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


def write_sana_shards(folder: Path, count: int) -> None:
    """One shard in SANA's layout, of noise in several shapes, with its wids-meta.json."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number in range(count):
            height, width = ((64, 64), (64, 64), (48, 80))[number % 3]
            picture = Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8))
            data = BytesIO()
            picture.save(data, format="PNG")
            record = {"height": height, "width": width, "prompt": f"{WORDS[number % len(WORDS)]}, number {number}"}
            for kind, content in (("json", json.dumps(record).encode()), ("png", data.getvalue())):
                info = tarfile.TarInfo(f"{number:04}.{kind}")
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    entry = {"url": "00000.tar", "nsamples": count, "filesize": (folder / "00000.tar").stat().st_size}
    meta = {"name": "small", "__kind__": "SANA-WebDataset", "wids_version": 1, "shardlist": [entry]}
    (folder / "wids-meta.json").write_text(json.dumps(meta), encoding="utf-8")


def write_transformer(folder: Path, layers: int, width: int, channels: int, caption_channels: int) -> None:
    """A `SanaTransformer2DModel` with random weights, as diffusers itself makes and saves it, in two shards."""
    heads = width // 16
    network = SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=heads,
        attention_head_dim=16,
        num_layers=layers,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=16,
        cross_attention_dim=width,
        caption_channels=caption_channels,
        mlp_ratio=2.5,
        sample_size=8,
        patch_size=1,
        qk_norm="rms_norm_across_heads",
    )
    half = sum(parameter.nbytes for parameter in network.parameters()) * 2 // 3
    network.save_pretrained(folder, max_shard_size=half)


def write_sana_1_0(path: Path, depth: int, width: int) -> None:
    """A published checkpoint of SANA-1.0's kind: a `.pth` with `state_dict`, of a network without QK norm."""
    config = NetworkConfig(LATENT_CHANNELS, width, depth, 16, width // 16, 2.5, 1, TEXT_CHANNELS, False, "nvlabs")
    torch.save({"state_dict": Sana(config).state_dict(), "epoch": 1}, path)

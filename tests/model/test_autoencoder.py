"""Claims about the autoencoder: it is diffusers' AutoencoderDC with a scale, in diffusers' folder format."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from safetensors.torch import load_file, save_file

from model.autoencoder import Autoencoder, build_autoencoder, load_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCALE = 0.375


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    built = build_autoencoder(latent_channels=4, block_channels=(8, 16), layers_per_block=1)
    built.network.register_to_config(scaling_factor=SCALE)
    return built


def pictures(height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_autoencoder_folder_opened_by_diffusers_gives_the_same_latents_and_pictures(
    autoencoder: Autoencoder, tmp_path: Path
) -> None:
    autoencoder.save(tmp_path)
    peer = AutoencoderDC.from_pretrained(tmp_path)
    with torch.no_grad():
        latents = peer.encode(pictures()).latent * peer.config.scaling_factor
        decoded = peer.decode(latents / peer.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(autoencoder.encode(pictures()), latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(autoencoder.decode(latents), decoded, atol=1e-5, rtol=0)


def test_published_kind_of_autoencoder_with_attention_blocks_loads_and_gives_diffusers_output(tmp_path: Path) -> None:
    torch.manual_seed(2)
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    peer = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(2, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    ).eval()
    peer.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    with torch.no_grad():
        expected = peer.encode(pictures()).latent * 0.41407
    assert (loaded.latent_channels, loaded.downsampling) == (8, 4)
    torch.testing.assert_close(loaded.encode(pictures()), expected, atol=1e-5, rtol=1e-5)


def test_autoencoder_read_back_from_its_folder_is_the_same_and_writes_the_same_bytes(
    autoencoder: Autoencoder, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    autoencoder.save(first)
    loaded = load_autoencoder(first)
    loaded.save(second)
    assert torch.equal(loaded.encode(pictures()), autoencoder.encode(pictures()))
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }
    assert not any(weight.requires_grad for weight in loaded.network.parameters())


def test_latents_have_the_advertised_shape_and_scale_for_pictures_that_are_not_square(autoencoder: Autoencoder) -> None:
    latents = autoencoder.encode(pictures(16, 24))
    assert latents.shape == (
        3,
        autoencoder.latent_channels,
        16 // autoencoder.downsampling,
        24 // autoencoder.downsampling,
    )
    assert autoencoder.decode(latents).shape == (3, 3, 16, 24)
    autoencoder.network.register_to_config(scaling_factor=2 * SCALE)
    torch.testing.assert_close(autoencoder.encode(pictures()), 2 * latents, atol=0, rtol=0)
    assert autoencoder.decode(1e4 * latents).abs().max() <= 1


def test_bfloat16_autoencoder_stays_close_to_float32_and_returns_float32(
    autoencoder: Autoencoder, tmp_path: Path
) -> None:
    autoencoder.save(tmp_path)
    half = load_autoencoder(tmp_path, dtype=torch.bfloat16)
    exact = autoencoder.encode(pictures())
    assert half.encode(pictures()).dtype == half.decode(exact).dtype == torch.float32
    assert (half.encode(pictures()) - exact).square().mean() < 1e-3 * exact.square().mean()
    assert (half.decode(exact) - autoencoder.decode(exact)).abs().max() < 0.1


def test_picture_that_is_no_multiple_of_the_downsampling_is_refused(autoencoder: Autoencoder) -> None:
    with pytest.raises(ValueError, match="18x24 pixels has no latent: sides must be multiples of 4"):
        autoencoder.encode(pictures(18, 24))


@pytest.mark.parametrize("channels", [(8, 18), (6, 8), (8, 48), (32, 24)])
def test_channels_that_do_not_fit_the_shortcuts_are_refused(channels: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="block_channels"):
        build_autoencoder(4, channels, 1)


@pytest.mark.parametrize("channels", [(8, 8), (12, 48), (16, 8), (24,), (12, 24, 48)])
def test_accepted_channels_make_an_autoencoder_that_runs(channels: tuple[int, ...]) -> None:
    autoencoder = build_autoencoder(4, channels, 1)
    assert autoencoder.downsampling == 2 ** len(channels)
    assert autoencoder.decode(autoencoder.encode(pictures())).shape == pictures().shape


def test_folder_without_an_autoencoder_is_refused_in_one_line(autoencoder: Autoencoder, tmp_path: Path) -> None:
    other, damaged = tmp_path / "other", tmp_path / "damaged"
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(other)
    autoencoder.save(damaged)
    weights = load_file(damaged / WEIGHTS)
    del weights["decoder.conv_in.bias"]
    save_file(weights, damaged / WEIGHTS)
    reasons = {tmp_path / "absent": "config.json", other: "AutoencoderKL", damaged: "decoder.conv_in.bias"}
    for folder, reason in reasons.items():
        with pytest.raises(ValueError, match=reason) as raised:
            load_autoencoder(folder)
        assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_pickled_weights_are_not_loaded(autoencoder: Autoencoder, tmp_path: Path) -> None:
    autoencoder.save(tmp_path)
    torch.save(autoencoder.network.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "AutoencoderDC"
    with pytest.raises(ValueError, match="holds no AutoencoderDC"):
        load_autoencoder(tmp_path)

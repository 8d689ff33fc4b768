"""Claims about weights in and out: every format gives the same network, what does not fit is listed, nothing is run."""

import json
import math
import secrets
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from safetensors.torch import load_file, save_file

from model.autoencoder import build_autoencoder, load_autoencoder
from model.checkpoint import load_network, save_network
from model.network import NetworkConfig, Sana
from model.numerics import Numerics
from model.sampler import SamplerName, sample
from model.text_encoder import Reading, build_text_encoder, load_text_encoder, pad, train_tokenizer
from model.weights.diffusers_pipeline import export_pipeline, to_transformer, transformer_config
from model.weights.fit_to_network import PUBLISHED_HEADS, load_weights
from model.weights.weight_names import from_diffusers, to_diffusers

CAPTIONS = ["a photo of a red circle", "a photo of two blue rings left of a cross"]


def drawn(depth: int = 2, qk_norm: bool = True, patch_size: int = 1, numerics: Numerics = "diffusers") -> Sana:
    """A network of 32 channels in which every parameter has its own random value; the seed is new in each run."""
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    network = Sana(NetworkConfig(4, 32, depth, 8, 2, 2.5, patch_size, 16, qk_norm, numerics))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def loaded(path: Path, **options: object) -> Sana:
    return load_weights(path, "diffusers", heads=(8, 2), **options)


def same(one: Sana, other: Sana) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_every_format_gives_the_same_network(tmp_path: Path, qk_norm: bool, patch_size: int) -> None:
    network = drawn(depth=3, qk_norm=qk_norm, patch_size=patch_size)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    extra = {"pos_embed": torch.zeros(1, 16, 32), "y_embedder.y_embedding": torch.randn(7, 16)}
    torch.save({"state_dict": state | extra, "epoch": 3}, tmp_path / "published.pth")
    save_file(state | extra, tmp_path / "single.safetensors")
    to_transformer(network, 4).save_pretrained(tmp_path / "folder")
    to_transformer(network, 4).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    to_transformer(network, 4).save_pretrained(tmp_path / "pipeline" / "transformer")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for name in ("published.pth", "single.safetensors", "folder", "shards", "pipeline"):
        read = loaded(tmp_path / name)
        assert read.config == network.config and same(read, network), name


def test_a_diffusers_folder_tells_its_heads(tmp_path: Path) -> None:
    network = drawn()
    to_transformer(network, 4).save_pretrained(tmp_path)
    assert load_weights(tmp_path, "diffusers").config == network.config


def test_weights_of_a_network_with_a_positional_embedding_are_refused(tmp_path: Path) -> None:
    network = drawn()
    to_transformer(network, 4).save_pretrained(tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    single = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    for scale in (1.0, 2.0):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"interpolation_scale": scale}))
        for path in (tmp_path / "folder", single):
            with pytest.raises(
                ValueError, match=rf"config\.json: interpolation_scale is {scale}: .*positional"
            ) as error:
                loaded(path)
            assert "\n" not in str(error.value)
    position = {"pos_embed": torch.zeros(1, 16, 32)}
    position["pos_embed"][0, 3, 5] = 1e-3
    save_file(network.state_dict() | position, tmp_path / "single.safetensors")
    torch.save({"state_dict": network.state_dict() | position}, tmp_path / "published.pth")
    for name in ("single.safetensors", "published.pth"):
        with pytest.raises(ValueError, match=f"{name}: pos_embed is not zero: .*positional") as error:
            loaded(tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_config_beside_a_single_file_of_diffusers_tells_its_heads(tmp_path: Path) -> None:
    network = drawn()
    to_transformer(network, 4).save_pretrained(tmp_path)
    assert load_weights(tmp_path / "diffusion_pytorch_model.safetensors", "diffusers").config == network.config


def test_the_published_widths_need_no_heads_and_others_do(tmp_path: Path) -> None:
    assert PUBLISHED_HEADS == {1152: (32, 1152 // 72), 2240: (32, 2240 // 112)}
    save_file(drawn().state_dict(), tmp_path / "single.safetensors")
    with pytest.raises(ValueError, match="no published network is 32 wide: give its linear_head_dim and cross_heads"):
        load_weights(tmp_path / "single.safetensors", "diffusers")


def test_the_average_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    weights, average = drawn(), drawn()
    torch.save({"state_dict": weights.state_dict(), "state_dict_ema": average.state_dict()}, tmp_path / "both.pth")
    torch.save({"state_dict": weights.state_dict()}, tmp_path / "one.pth")
    assert same(loaded(tmp_path / "both.pth"), weights)
    assert same(loaded(tmp_path / "both.pth", which="state_dict_ema"), average)
    with pytest.raises(ValueError, match=r"one\.pth has no state_dict_ema: it has state_dict"):
        loaded(tmp_path / "one.pth", which="state_dict_ema")


def test_depth_is_read_from_the_keys_and_not_from_the_files_name(tmp_path: Path) -> None:
    save_file(drawn(depth=5).state_dict(), tmp_path / "SANA1.5_1.6B_D20.safetensors")
    assert loaded(tmp_path / "SANA1.5_1.6B_D20.safetensors").config.depth == 5


def test_names_go_to_diffusers_and_back_and_are_all_of_its_own() -> None:
    for qk_norm in (True, False):
        network = drawn(qk_norm=qk_norm)
        theirs = to_diffusers(network.state_dict())
        model = SanaTransformer2DModel(**transformer_config(network.config, 4))
        assert {name: tensor.shape for name, tensor in theirs.items()} == {
            name: tensor.shape for name, tensor in model.state_dict().items()
        }
        back = from_diffusers(theirs)
        assert back.keys() == network.state_dict().keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())


def test_exported_network_computes_what_ours_does() -> None:
    network = drawn(depth=3)
    latents, times = torch.randn(2, 4, 3, 5), torch.tensor([12.5, 800.0])
    text, mask = torch.randn(2, 6, 16), torch.arange(6) < torch.tensor([[6], [2]])
    with torch.no_grad():
        ours = network(latents, times, network.encode_text(text, mask))
        theirs = to_transformer(network, 4)(latents, text, times, encoder_attention_mask=mask.float()).sample
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_all_that_does_not_fit_is_listed_with_the_nearest_name(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in drawn().state_dict().items()}
    del state["blocks.1.attn.proj.bias"], state["t_block.1.bias"]
    state["blocks.0.attn.k_norms.weight"] = state.pop("blocks.0.attn.k_norm.weight")
    state["final_layer.linear.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError) as raised:
        loaded(tmp_path / "wrong.safetensors")
    assert str(raised.value) == (
        f"{tmp_path / 'wrong.safetensors'}: "
        "3 missing: t_block.1.bias, blocks.0.attn.k_norm.weight, blocks.1.attn.proj.bias; "
        "1 surplus: blocks.0.attn.k_norms.weight (nearest: blocks.0.attn.k_norm.weight); "
        "1 misshapen: final_layer.linear.bias is (5,), not (4,)"
    )


def test_a_part_of_a_diffusers_tensor_that_is_missing_is_listed(tmp_path: Path) -> None:
    theirs = to_diffusers(drawn().state_dict())
    del theirs["transformer_blocks.1.attn2.to_k.bias"]
    save_file(theirs, tmp_path / "wrong.safetensors")
    words = r"1 missing: blocks\.1\.cross_attn\.kv_linear\.bias; 1 surplus: transformer_blocks\.1\.attn2\.to_v\.bias"
    with pytest.raises(ValueError, match=words):
        loaded(tmp_path / "wrong.safetensors")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (self.folder,)


def test_a_pickle_with_a_payload_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save({"state_dict": drawn().state_dict(), "payload": Payload(tmp_path / "made")}, tmp_path / "evil.pth")
    with pytest.raises(
        ValueError, match=r"evil\.pth holds more than tensors, or is damaged, and was not read: [^\n]*$"
    ):
        loaded(tmp_path / "evil.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "header.safetensors", "empty.pth", "absent.pth"])
def test_a_damaged_file_gives_one_line_with_its_path(tmp_path: Path, name: str) -> None:
    state = drawn().state_dict()
    path = tmp_path / name
    if name != "absent.pth":
        save_file(state, path) if name.endswith("safetensors") else torch.save({"state_dict": state}, path)
        data = path.read_bytes()
        cut = {"cut.pth": data[: len(data) // 2], "cut.safetensors": data[:-100], "empty.pth": b""}
        path.write_bytes(cut.get(name, b"\xff" * 8 + data[8:]))
    with pytest.raises(ValueError) as raised:
        loaded(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"proj_out.weight": "../other.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names \.\./other\.safetensors, which is not in its folder"):
        loaded(tmp_path)


@pytest.mark.parametrize("sampler", ["flow_dpm-solver", "flow_euler"])
def test_diffusers_draws_the_same_picture_from_an_exported_folder(tmp_path: Path, sampler: SamplerName) -> None:
    network = drawn(depth=3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("blocks") and parameter.ndim > 1:
                parameter.div_(math.sqrt(parameter[0].numel()) * 0.2)  # a network that does not blow small errors up
    tokenizer = train_tokenizer(CAPTIONS * 2, 400)
    text_encoder = build_text_encoder(tokenizer, 16, 1, 2, Reading(20, "none", "diffusers", "stored"))
    autoencoder = build_autoencoder(4, (8, 16, 16), 1)
    export_pipeline(network, autoencoder, text_encoder, tmp_path, sampler=sampler, flow_shift=3.0, sample_size=4)
    noise = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        context = network.encode_text(*pad(text_encoder.encode(CAPTIONS)))
        null = network.encode_text(*pad([text_encoder.encode_null()] * 2))
    latents = sample(network, noise, context, null, sampler=sampler, steps=5, guidance=3.0, flow_shift=3.0)
    ours = (autoencoder.decode(latents).permute(0, 2, 3, 1).numpy() + 1) / 2
    pipeline = SanaPipeline.from_pretrained(tmp_path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        CAPTIONS,
        latents=noise,
        height=32,
        width=32,
        num_inference_steps=5,
        guidance_scale=3.0,
        max_sequence_length=20,
        complex_human_instruction=None,
        use_resolution_binning=False,
        output_type="np",
    ).images
    assert theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=0.5 / 255)  # the same 8-bit picture, but for rounding


WRAPPED = {
    "compiled": "_orig_mod.{}",
    "ddp": "module.{}",
    "lightning": "model.{}",
    "compiled in ddp": "module._orig_mod.{}",
    "trainer of a user interface": "model.diffusion_model.{}",
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("names", ["published", "diffusers"])
def test_the_names_of_wrappers_are_taken_off_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrapped: str, names: str
) -> None:
    network = drawn()
    state = network.state_dict() if names == "published" else to_diffusers(network.state_dict())
    state = {wrapped.format(name): tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "wrapped.safetensors")
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    capsys.readouterr()
    for name in ("wrapped.safetensors", "wrapped.pth"):
        assert same(loaded(tmp_path / name), network)
        said = capsys.readouterr().out
        assert said.startswith(f"{tmp_path / name}: its tensors have ") and said.count("\n") == 1
        assert all(part in said for part in wrapped.split(".")[:-1])


def test_the_names_of_wrapped_blocks_are_taken_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = drawn()
    save_file(
        {
            name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module._orig_mod."): tensor
            for name, tensor in network.state_dict().items()
        },
        tmp_path / "blocks.safetensors",
    )
    assert same(loaded(tmp_path / "blocks.safetensors"), network)
    assert "_orig_mod, _checkpoint_wrapped_module" in capsys.readouterr().out


def test_weights_without_wrappers_are_read_without_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(drawn().state_dict(), tmp_path / "plain.safetensors")
    capsys.readouterr()
    loaded(tmp_path / "plain.safetensors")
    assert capsys.readouterr().out == ""


def test_names_of_another_network_are_told(tmp_path: Path) -> None:
    state = {f"down.{number}.weight": torch.zeros(2) for number in range(9)}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ValueError) as raised:
        loaded(tmp_path / "other.safetensors")
    said = str(raised.value)
    assert "x_embedder.proj.weight is missing: these are no weights of SANA" in said and "\n" not in said
    assert said.endswith("down.0.weight, down.1.weight, down.2.weight, down.3.weight, ... (9 in all)")
    torch.save({"model_ema": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match=r"one under state_dict, and it holds model_ema, epoch$"):
        loaded(tmp_path / "nested.pth")


def test_a_folder_with_a_variant_alone_is_named_with_what_lies_there(tmp_path: Path) -> None:
    network = drawn()
    to_transformer(network, 4).save_pretrained(tmp_path, variant="fp16")
    variant = tmp_path / "diffusion_pytorch_model.fp16.safetensors"
    with pytest.raises(ValueError) as raised:
        loaded(tmp_path)
    said = str(raised.value)
    assert f"there is config.json, {variant.name}; to take a variant name its file, {variant}" in said
    assert "diffusion_pytorch_model.safetensors or model.safetensors" in said and "\n" not in said
    assert same(loaded(variant), network)


def test_encoders_in_a_variant_alone_are_named_with_what_lies_there(tmp_path: Path) -> None:
    autoencoder = build_autoencoder(4, (8, 16, 16), 1)
    autoencoder.network.save_pretrained(tmp_path / "autoencoder", variant="fp16")
    with pytest.raises(
        ValueError, match=r"there is config\.json, diffusion_pytorch_model\.fp16\.safetensors"
    ) as raised:
        load_autoencoder(tmp_path / "autoencoder")
    assert "\n" not in str(raised.value)
    tokenizer = train_tokenizer(CAPTIONS * 2, 400)
    encoder = build_text_encoder(tokenizer, 16, 1, 2, Reading(20, "none", "diffusers", "stored"))
    encoder.save(tmp_path / "text_encoder")
    (tmp_path / "text_encoder" / "model.safetensors").rename(tmp_path / "text_encoder" / "model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"there is [^\n]*model\.fp16\.safetensors") as raised:
        load_text_encoder(tmp_path / "text_encoder")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nan.safetensors", "nan.pth", "folder"])
def test_a_published_weight_that_is_not_finite_is_named(tmp_path: Path, name: str) -> None:
    network = drawn()
    with torch.no_grad():
        network.blocks[1].cross_attn.proj.weight[2, 1] = math.nan
    save_file(network.state_dict(), tmp_path / "nan.safetensors")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "nan.pth")
    to_transformer(network, 4).save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError) as raised:
        loaded(tmp_path / name)
    assert str(raised.value).startswith(
        f"{tmp_path / name}: blocks.1.cross_attn.proj.weight holds numbers that are not finite"
    )


def test_a_checkpoint_of_ours_whose_names_do_not_fit_is_told_in_a_short_line(tmp_path: Path) -> None:
    save_network(drawn(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"_orig_mod\..*\(\d+ in all\) in one of config\.json and model\.saf"
    ) as raised:
        load_network(tmp_path)
    assert len(str(raised.value)) < 600
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="does not fit the network") as raised:
        load_network(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    with pytest.raises(
        ValueError, match=r"it needs config.json and model.safetensors, and holds config.json, model.fp16"
    ):
        load_network(tmp_path)

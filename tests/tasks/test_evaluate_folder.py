"""A folder of pictures is measured as the metrics' own libraries and formulas measure it; what cannot be is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model

from tasks import evaluate_folder as command
from tasks.evaluation import inception_features
from tasks.evaluation.inception_features import clean_resize
from tasks.evaluation.judges import vision_language_judge
from tasks.evaluation.listed_pictures import cover_square
from tasks.system.manifest import sha256_file
from tests.helpers.small_detector import write_clip
from tests.helpers.tiny_vision_language import save_idefics3
from tests.helpers.torchscript_network import write_network

PROMPTS = ("a red cup", "two dogs", "a cat left of a vase", "a train")


def write_pictures(folder: Path, names: list[str], seed: int, side: int = 40, suffix: str = ".png") -> None:
    random = np.random.default_rng(seed)
    for number, name in enumerate(names):
        height, width = side + number % 3, side + number % 5  # sizes differ
        coarse = random.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, a vision-language model and a network in TorchScript; not to be changed by a test."""
    root = tmp_path_factory.mktemp("models")
    write_clip(root / "clip")
    save_idefics3(root / "judge")
    write_network(root / "inception.pt")
    return root


@pytest.fixture
def mjhq(tmp_path: Path) -> Path:
    """Thirty drawn and thirty real pictures of two categories, with their listing, in MJHQ-30K's layout."""
    listing = {
        f"id{number}": {"category": ("animals", "people")[number % 2], "prompt": f"{PROMPTS[number % 4]} {number}"}
        for number in range(30)
    }
    (tmp_path / "meta_data.json").write_text(json.dumps(listing))
    write_pictures(tmp_path / "real", [f"{entry['category']}/{name}" for name, entry in listing.items()], 0, 48, ".jpg")
    write_pictures(tmp_path / "drawn", list(listing), 1)
    return tmp_path


def measure(*arguments: object) -> dict:
    out = Path(str(arguments[list(arguments).index("--out") + 1]))
    command.run([*map(str, arguments), "--device", "cpu"])
    return json.loads(out.read_text())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        command.run([*map(str, arguments), "--device", "cpu"])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def frechet(real: np.ndarray, drawn: np.ndarray) -> float:
    """Equation 6 of Heusel et al. 2017, in float64."""
    means, sets = real.mean(axis=0) - drawn.mean(axis=0), [np.cov(each, rowvar=False) for each in (real, drawn)]
    return float(means @ means + np.trace(sets[0] + sets[1] - 2 * scipy.linalg.sqrtm(sets[0] @ sets[1]).real))


def test_the_distance_is_that_of_the_network_s_features_of_cut_and_resized_pictures(
    mjhq: Path, models: Path, tmp_path: Path
) -> None:
    summary = measure(
        *("--pictures", mjhq / "drawn", "--prompts", mjhq / "meta_data.json", "--real", mjhq / "real"),
        *("--inception", models / "inception.pt", "--size", 32, "--out", tmp_path / "out" / "mjhq.json"),
    )
    network = torch.jit.load(models / "inception.pt")

    def features(folder: Path, pattern: str) -> np.ndarray:
        pixels = []
        for path in sorted(folder.glob(pattern)):
            image = Image.open(path).convert("RGB")
            short, long = sorted(image.size)
            sides = (32, 32 * long // short) if image.width == short else (32 * long // short, 32)
            image = image.resize(sides, Image.Resampling.BILINEAR)
            left, top = round((image.width - 32) / 2), round((image.height - 32) / 2)
            image = image.crop((left, top, left + 32, top + 32))
            bands = [np.asarray(band, dtype=np.float32) for band in image.split()]
            resized = [np.asarray(Image.fromarray(band).resize((299, 299), Image.Resampling.BICUBIC)) for band in bands]
            pixels.append(np.clip(np.stack(resized), 0, 255))
        return network(torch.from_numpy(np.stack(pixels))).detach().double().numpy()

    found = summary["frechet"]["inception_file"]
    assert found["value"] == pytest.approx(
        frechet(features(mjhq / "real", "*/*.jpg"), features(mjhq / "drawn", "*.png")), rel=1e-3
    )
    assert found["low"] < found["value"] < found["high"] and found["value"] > 0
    assert (found["real"], found["drawn"], found["channels"]) == (30, 30, 6)
    assert "30 drawn and 30 real pictures" in found["note"] and "TorchScript network" in found["network"]


def test_pictures_are_cut_as_torchvision_cuts_them() -> None:
    picture = np.random.default_rng(0).integers(0, 256, size=(31, 47, 3), dtype=np.uint8)
    found = cover_square(picture, 16)
    # torchvision: the shorter side becomes 16, the longer int(16 * 47 / 31) = 24, and 4 columns go on each side.
    resized = Image.fromarray(picture).resize((24, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(found, np.asarray(resized)[:, 4:20])
    assert cover_square(picture, 0) is picture
    assert cover_square(picture.swapaxes(0, 1), 16).shape == (16, 16, 3)


def test_resizing_follows_clean_fid_s_rule_and_keeps_fractions() -> None:
    # Of low contrast, so that no value is cut off: Pillow's bytes are cut between its two passes, and floats are not.
    picture = np.random.default_rng(0).integers(100, 140, size=(700, 500, 3), dtype=np.uint8)
    found = clean_resize(picture)
    assert found.shape == (299, 299, 3) and found.dtype == np.float32
    rounded = np.asarray(Image.fromarray(picture).resize((299, 299), Image.Resampling.BICUBIC))
    assert np.abs(found - rounded).max() <= 1.01 and not np.array_equal(found, found.round())
    loud = clean_resize(np.random.default_rng(0).integers(0, 2, size=(400, 400, 3), dtype=np.uint8) * np.uint8(255))
    assert (loud.min(), loud.max()) == (0, 255)


def test_the_published_file_is_asked_by_its_layers_and_its_distance_is_the_fid(
    mjhq: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception_features, "PUBLISHED_SHA256", sha256_file(models / "inception.pt"))
    pictures = np.random.default_rng(0).integers(0, 256, size=(3, 20, 20, 3), dtype=np.uint8)
    found = inception_features.InceptionFeatures(models / "inception.pt", "cpu").read(pictures)
    network = write_network(tmp_path / "same.pt")
    pixels = torch.from_numpy(np.stack([clean_resize(picture) for picture in pictures])).permute(0, 3, 1, 2)
    assert found == pytest.approx(network.layers(pixels / 128 - 1).detach().numpy(), abs=1e-5)
    summary = measure(
        *("--pictures", mjhq / "drawn", "--real", mjhq / "real", "--inception", models / "inception.pt"),
        *("--out", tmp_path / "fid.json"),
    )
    assert list(summary["frechet"]) == ["fid"] and summary["frechet"]["fid"]["network"] == "Inception of 2015-12-05"
    assert summary["size"] == 256 and summary["prompts"] is None


def test_the_clip_score_is_torchmetrics_own_of_the_whole_pictures(mjhq: Path, models: Path, tmp_path: Path) -> None:
    summary = measure(
        *("--pictures", mjhq / "drawn", "--prompts", mjhq / "meta_data.json"),
        *("--clip", models / "clip", "--out", tmp_path / "clip.json"),
    )

    class Clip(CLIPModel):
        """torchmetrics expects the embeddings themselves, as transformers gave them before version 5."""

        def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return super().get_image_features(pixel_values).pooler_output

        def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return super().get_text_features(input_ids, attention_mask).pooler_output

    model, processor = Clip.from_pretrained(models / "clip").eval(), CLIPProcessor.from_pretrained(models / "clip")
    listing = json.loads((mjhq / "meta_data.json").read_text())
    wanted = {}
    with torch.no_grad():
        for name, entry in listing.items():
            pixels = torch.from_numpy(np.array(Image.open(mjhq / "drawn" / f"{name}.png"))).permute(2, 0, 1)
            wanted[name] = float(clip_score(pixels, entry["prompt"], lambda: (model, processor)))
    with open(tmp_path / "clip.pictures.csv", newline="") as stream:
        written = {row["id"]: float(row["clip_score"]) for row in csv.DictReader(stream)}
    assert written == pytest.approx(wanted, abs=1e-3)
    assert len({round(value, 2) for value in wanted.values()}) > 5
    found, values = summary["clip_score"], np.array(list(wanted.values()))
    assert found["value"] == pytest.approx(values.mean(), abs=1e-3)
    assert found["high"] - found["value"] == pytest.approx(1.96 * values.std(ddof=1) / 30**0.5, rel=1e-3)
    assert found["categories"]["animals"]["value"] == pytest.approx(values[::2].mean(), abs=1e-3)
    assert list(found["categories"]) == ["animals", "people"]


def test_a_dino_gives_a_distance_and_a_clip_score_needs_a_clip(
    mjhq: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    settings = (models / "clip" / "preprocessor_config.json").read_bytes()
    (tmp_path / "dino" / "preprocessor_config.json").write_bytes(settings)
    out = ("--out", tmp_path / "out.json")
    folders = ("--pictures", mjhq / "drawn", "--real", mjhq / "real")
    found = measure(*folders, "--vision", tmp_path / "dino", *out)["frechet"]["vision_model"]
    assert found["network"] == "dinov2 of dino" and found["channels"] == 8 and found["value"] > 0
    words = refusal(
        capsys, *("--pictures", mjhq / "drawn", "--prompts", mjhq / "meta_data.json", "--clip", tmp_path / "dino"), *out
    )
    assert "--clip" in words and "reads no text" in words


QUESTIONS = (
    ("p1", 1, "0", "entity - whole (cup)", "Is there a cup?"),
    ("p1", 2, "1", "attribute - color (cup, red)", "Is the cup red?"),
    ("p1", 3, "1,2", "relation - spatial (cup, table)", "Is the cup on a table?"),
    ("p2", 1, "0", "entity - whole (dog)", "Is there a dog?"),
)


@pytest.fixture
def dpg(tmp_path: Path) -> Path:
    """Two prompts with questions, one with four pictures in a file, and one with two files in a folder."""
    with open(tmp_path / "dpg_bench.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            "item_id text keywords proposition_id dependency category_broad category_detailed tuple "
            "question_natural_language".split()
        )
        for item, number, parents, category, question in QUESTIONS:
            writer.writerow((item, f"prompt of {item}", "", number, parents, "", "", category, question))
    write_pictures(tmp_path / "drawn", ["p1", "p2/0", "p2/1"], 3, side=40)
    Image.open(tmp_path / "drawn" / "p2" / "0.png").resize((40, 40)).save(tmp_path / "drawn" / "p2" / "0.png")
    Image.open(tmp_path / "drawn" / "p2" / "1.png").resize((40, 40)).save(tmp_path / "drawn" / "p2" / "1.png")
    return tmp_path


def test_questions_are_asked_of_every_picture_and_their_dependencies_counted(
    dpg: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision_language_judge, "LEAST_ANSWER_MASS", 1e-9)  # a random model rarely says yes or no
    arguments = (
        *("--pictures", dpg / "drawn", "--questions", dpg / "dpg_bench.csv", "--judge", models / "judge"),
        *("--grid", 4, "--bootstrap-samples", 100, "--out", tmp_path / "dpg.json"),
    )
    summary = measure(*arguments)
    found = summary["dpg_bench"]
    assert (found["prompts"], found["pictures"], found["questions"]) == (2, 12, 4)
    with open(tmp_path / "dpg.answers.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4 * 3 + 8 * 1
    yes = {(row["item_id"], row["picture"], row["proposition_id"]): float(row["p_yes"]) > 0.5 for row in rows}
    assert 0 < sum(yes.values()) < len(yes)
    scores = {"p1": [], "p2": []}
    for item, picture in dict.fromkeys((row["item_id"], row["picture"]) for row in rows):
        first = yes[item, picture, "1"]
        if item == "p1":
            second = first and yes[item, picture, "2"]
            scores[item].append((first + second + (first and second and yes[item, picture, "3"])) / 3)
        else:
            scores[item].append(float(first))
    assert found["value"] == pytest.approx(100 * np.mean([np.mean(each) for each in scores.values()]))
    entity = [answer for (_, _, number), answer in yes.items() if number == "1"]
    assert found["categories"]["entity"]["value"] == pytest.approx(100 * np.mean(entity))
    assert set(found["categories"]) == {"entity", "attribute", "relation"}
    assert "mPLUG" in found["note"]

    def ask_again(*_: object) -> None:
        raise AssertionError("an answer was asked for twice")

    monkeypatch.setattr(vision_language_judge.VisionLanguageJudge, "_ask", ask_again)
    assert measure(*arguments) == summary


def test_what_cannot_be_measured_is_refused_in_one_line(
    mjhq: Path, dpg: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, out = ("--pictures", mjhq / "drawn"), ("--out", tmp_path / "x.json")
    listed = (*drawn, "--prompts", mjhq / "meta_data.json")
    inception = ("--inception", models / "inception.pt")
    cases = {
        "nothing to measure": drawn,
        "--real and a network": (*drawn, *inception),
        "give --prompts": (*drawn, "--clip", models / "clip"),
        "--questions and --judge belong together": (*drawn, "--questions", dpg / "dpg_bench.csv"),
        "is no TorchScript file": (*drawn, "--real", mjhq / "real", "--inception", mjhq / "meta_data.json"),
        "holds no pictures": (*drawn, "--real", models / "clip", *inception),
        "lacks the pictures of 1 of 2 prompts, p2 first": (
            *("--pictures", tmp_path / "one", "--questions", dpg / "dpg_bench.csv", "--judge", models / "judge"),
        ),
    }
    write_pictures(tmp_path / "one", ["p1"], 0)
    for words, arguments in cases.items():
        said = refusal(capsys, *arguments, *out)
        assert words in said and said.count("\n") == 1
    (mjhq / "drawn" / "id7.png").unlink()
    said = refusal(capsys, *listed, "--clip", models / "clip", *out)
    assert "lacks the pictures of 1 of 30 ids" in said and "id7 first" in said and said.count("\n") == 1
    (mjhq / "drawn" / "id7.png").write_bytes(b"no picture")
    said = refusal(capsys, *listed, "--clip", models / "clip", *out)
    assert "id7.png cannot be read as a picture" in said and said.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


def test_an_id_that_leads_out_of_the_folder_has_no_picture(
    mjhq: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"../real/animals/id0": {"category": "", "prompt": "a cup"}}))
    said = refusal(
        capsys,
        *("--pictures", mjhq / "drawn", "--prompts", tmp_path / "list.json", "--clip", models / "clip"),
        *("--out", tmp_path / "x.json"),
    )
    assert "lacks the pictures of 1 of 1 ids" in said

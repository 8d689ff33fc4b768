"""Claims about GenEval's detector: objects from a Mask2Former's raw outputs, colours from a CLIP, and wrong folders.

The networks are small and random; what is read from their outputs is held against plain NumPy in float64.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.evaluation.detectors.clip_colours import cut_out, load_clip_colours
from tasks.evaluation.detectors.detector import Detection
from tasks.evaluation.detectors.mask2former_detector import Mask2FormerDetector, load_mask2former_detector
from tasks.evaluation.detectors.mask2former_instances import Sizes, instances, mask_box
from tasks.evaluation.geneval_rules import COLOUR_ORDER, judge_picture
from tasks.evaluation.prompts.object_class_names import class_names
from tasks.system.errors import UserError
from tests.helpers.small_detector import write_clip, write_mask2former

NAMES = class_names()
SIZES = Sizes(padded=(64, 96), content=(64, 89), picture=(50, 70))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Mask2Former and a CLIP on disk."""
    root = tmp_path_factory.mktemp("models")
    write_mask2former(root / "mask2former")
    write_clip(root / "clip")
    return root / "mask2former", root / "clip"


@pytest.fixture(scope="module")
def detector(folders: tuple[Path, Path]) -> Mask2FormerDetector:
    return load_mask2former_detector(*folders, "cpu")


def pictures(count: int, height: int = 50, width: int = 70) -> np.ndarray:
    """Blots of colour with noise."""
    rng = np.random.default_rng(count)
    coarse = rng.integers(0, 256, (count, 5, 7, 3)).astype(np.uint8)
    fine = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
    noise = rng.integers(-20, 20, (count, height, width, 3))
    return np.clip(np.stack(fine) + noise, 0, 255).astype(np.uint8)


# -- mmdet's instance rule, by brute force -------------------------------------------------------------------------


def stretch(values: np.ndarray, size: int) -> np.ndarray:
    """Linear interpolation along the first axis; sample i of n lies at (i + 1/2) / n, and the ends go on unchanged."""
    old = len(values)
    result = np.empty((size, *values.shape[1:]))
    for new in range(size):
        place = min(max((new + 0.5) * old / size - 0.5, 0), old - 1)
        low = int(place)
        high = min(low + 1, old - 1)
        result[new] = (1 - (place - low)) * values[low] + (place - low) * values[high]
    return result


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return stretch(stretch(values, size[0]).T, size[1]).T


def stated_instances(class_logits: np.ndarray, mask_logits: np.ndarray, sizes: Sizes) -> list[tuple]:
    """(class probability, name, score, mask) of the best 100 pairs of query and class whose mask is not empty."""
    pairs = []
    for query, logits in enumerate(class_logits.astype(np.float64)):
        exponents = np.exp(logits - logits.max())
        for label in range(len(logits) - 1):
            pairs.append((exponents[label] / exponents.sum(), query, label))
    pairs.sort(key=lambda pair: -pair[0])
    found = []
    for probability, query, label in pairs[:100]:
        big = resized(mask_logits[query].astype(np.float64), sizes.padded)
        big = resized(big[: sizes.content[0], : sizes.content[1]], sizes.picture)
        mask = big > 0
        if mask.any():
            inside = (1 / (1 + np.exp(-big[mask]))).sum() / (mask.sum() + 1e-6)
            found.append((probability, NAMES[label], probability * inside, mask))
    return found


def random_outputs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of 7 queries; query 2 has no mask at all, query 3 covers everything."""
    rng = np.random.default_rng(seed)
    class_logits, mask_logits = rng.normal(size=(7, 81)) * 3, rng.normal(size=(7, 16, 24)) * 4
    mask_logits[2], mask_logits[3] = -np.abs(mask_logits[2]) - 0.1, np.abs(mask_logits[3]) + 0.1
    return class_logits, mask_logits


def test_instances_are_those_of_the_rule_stated_plainly():
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    class_logits, mask_logits = random_outputs(seed)
    found = instances(torch.from_numpy(class_logits), torch.from_numpy(mask_logits), NAMES, SIZES)
    stated = stated_instances(class_logits, mask_logits, SIZES)
    assert 7 < len(found) == len(stated) <= 100  # more than queries: a query is a candidate for every class
    for one, (_, name, score, mask) in zip(found, stated, strict=True):
        assert one.class_name == name and one.score == pytest.approx(score, rel=1e-9)
        assert one.mask.dtype == bool and np.array_equal(one.mask, mask)
        rows, columns = np.nonzero(mask)
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_an_empty_mask_is_no_object_and_a_full_one_has_the_picture_as_its_box():
    class_logits, mask_logits = np.full((3, 81), -20.0), np.full((3, 16, 24), 5.0)
    class_logits[0, 4] = class_logits[1, 7] = class_logits[2, 80] = 20.0
    mask_logits[0] = -5.0
    found = instances(torch.from_numpy(class_logits), torch.from_numpy(mask_logits), NAMES, SIZES, 0.3)
    assert [(one.class_name, one.box) for one in found] == [("truck", (0, 0, 70, 50))]
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-5)), rel=1e-6)


def test_only_the_best_hundred_pairs_are_looked_at():
    class_logits, mask_logits = np.zeros((2, 81)), np.ones((2, 16, 24))
    class_logits[:, 80] = -1.0
    class_logits[0] += np.linspace(0, 1e-3, 81)
    assert len(instances(torch.from_numpy(class_logits), torch.from_numpy(mask_logits), NAMES, SIZES)) == 100


def test_what_cannot_count_is_left_out_and_nothing_else():
    class_logits, mask_logits = (torch.from_numpy(logits) for logits in random_outputs(5))
    everything = instances(class_logits, mask_logits, NAMES, SIZES)
    least = 0.1
    likely = instances(class_logits, mask_logits, NAMES, SIZES, least)
    counted = [(one.class_name, one.score, one.box) for one in everything if one.score > least]
    assert 0 < len(counted) < len(everything)
    assert [(one.class_name, one.score, one.box) for one in likely if one.score > least] == counted


@pytest.mark.parametrize("mask", [np.zeros((4, 5)), np.eye(4, 5), np.array([[0, 0, 0], [0, 1, 0]])])
def test_a_box_ends_one_behind_the_last_pixel(mask):
    places = np.argwhere(mask)
    wanted = (*places.min(0)[::-1], *(places.max(0) + 1)[::-1]) if len(places) else (0, 0, 0, 0)
    assert mask_box(mask.astype(bool)) == wanted


# -- the whole detector --------------------------------------------------------------------------------------------


def plain_input(picture: np.ndarray) -> np.ndarray:
    """A picture of 50 x 70 pixels as the network wants it: 64 x 89, normalised, on a grey ground of 64 x 96."""
    resized_picture = Image.fromarray(picture).resize((89, 64), Image.Resampling.BILINEAR)
    ground = np.full((64, 96, 3), 128.0)
    ground[:, :89] = np.asarray(resized_picture)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    return ((ground - mean) / std).transpose(2, 0, 1)


def test_pictures_are_resized_normalised_and_padded_with_grey_not_stretched(detector):
    shown = pictures(3)
    pixels, sizes = detector.prepare(shown)
    assert sizes == SIZES
    np.testing.assert_allclose(pixels.numpy(), np.stack([plain_input(one) for one in shown]), atol=1e-5)


def test_detections_are_the_rule_s_on_the_network_s_raw_outputs(detector):
    shown = pictures(10)  # more than a batch
    found = detector.detect(shown)
    assert len(found) == 10 and sum(map(len, found)) > 20
    for picture, objects in zip(shown, found, strict=True):
        with torch.no_grad():
            raw = detector.model(pixel_values=torch.from_numpy(plain_input(picture)[None]).float())
        stated = stated_instances(raw.class_queries_logits[0].numpy(), raw.masks_queries_logits[0].numpy(), SIZES)
        stated = [one for one in stated if one[0] > 0.3]
        assert [one.class_name for one in objects] == [name for _, name, _, _ in stated]
        for one, (_, _, score, mask) in zip(objects, stated, strict=True):
            assert one.score == pytest.approx(score, abs=1e-4)
            assert one.mask.shape == (50, 70) and (one.mask != mask).mean() < 2e-3
            rows, columns = np.nonzero(one.mask)
            assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_picture_is_judged_by_classes_of_geneval_s_names(detector):
    picture = pictures(1)
    best = max(detector.detect(picture)[0], key=lambda one: one.score)
    line = {"tag": "single_object", "include": [{"class": best.class_name, "count": 1}], "prompt": ""}
    assert best.class_name in detector.class_names and len(detector.class_names) == 80
    assert judge_picture(line, [best], lambda _: [], detector.thresholds).correct
    assert (detector.thresholds.detection, detector.thresholds.counting) == (0.3, 0.9)
    assert (detector.thresholds.max_objects, detector.thresholds.max_overlap) == (16, 1.0)
    assert "not GenEval's own" in detector.note


# -- colours -------------------------------------------------------------------------------------------------------


def object_in(mask: np.ndarray, name: str = "tv remote") -> Detection:
    return Detection(name, 0.9, mask_box(mask), mask)


def test_an_object_is_cut_out_by_its_box_on_grey():
    picture, mask = pictures(1)[0], np.zeros((50, 70), dtype=bool)
    mask[10:14, 20] = mask[13, 20:26] = True
    crop = np.asarray(cut_out(picture, object_in(mask)))
    assert crop.shape == (4, 6, 3)
    for row in range(4):
        for column in range(6):
            inside = column == 0 or row == 3
            wanted = picture[10 + row, 20 + column] if inside else (0x99, 0x99, 0x99)
            assert tuple(crop[row, column]) == tuple(wanted)


def plain_colour_scores(model, tokenizer, crop: Image.Image, name: str) -> np.ndarray:
    """Cosine similarity of a crop with each of the ten colours, in float64."""

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.sqrt((vector**2).sum())

    width, height = crop.size
    scale = 32 / min(width, height)
    small = np.asarray(crop.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)) / 255.0
    top, left = (small.shape[0] - 32) // 2, (small.shape[1] - 32) // 2
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = ((small[top : top + 32, left : left + 32] - mean) / std).transpose(2, 0, 1)
    shown = model.vision_model(torch.from_numpy(pixels[None]).float()).pooler_output @ model.visual_projection.weight.T
    scores = []
    for colour in COLOUR_ORDER:
        total = np.zeros(16)
        for text in (
            f"a photo of a {colour} {name}",
            f"a photo of a {colour}-colored {name}",
            f"a photo of a {colour} object",
        ):
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            said = model.text_model(ids).pooler_output @ model.text_projection.weight.T
            total += unit(said[0].double().numpy())
        scores.append(unit(total) @ unit(shown[0].double().numpy()))
    return np.array(scores)


def test_colours_are_those_of_the_zero_shot_classifier_stated_plainly(folders):
    clip = load_clip_colours(folders[1], "cpu")
    rng, shown = np.random.default_rng(1), pictures(20)
    chosen = []
    for picture in shown:
        objects = []
        for height, width in ((20, 20), (16, 32), (32, 16)):
            top, left = rng.integers(0, 50 - height), rng.integers(0, 70 - width)
            mask = np.zeros((50, 70), dtype=bool)
            mask[top : top + height, left : left + width] = rng.random((height, width)) < 0.8
            mask[top, left] = mask[top + height - 1, left + width - 1] = True
            objects.append(object_in(mask))
        names = clip.colours(picture, objects)
        for one, name in zip(objects, names, strict=True):
            with torch.no_grad():
                scores = plain_colour_scores(clip.model, clip.tokenizer, cut_out(picture, one), one.class_name)
            assert scores[COLOUR_ORDER.index(name)] == pytest.approx(scores.max(), abs=1e-6)
            chosen.append(name)
    assert len(set(chosen)) > 1  # or the argmax of anything would do


def test_a_colour_s_sentences_weigh_alike_whatever_the_length_of_their_embeddings(folders):
    clip = load_clip_colours(folders[1], "cpu")
    generator = torch.Generator().manual_seed(0)
    said = {}

    def get_text_features(input_ids, attention_mask):
        output = type("Output", (), {})()
        lengths = 10 ** torch.rand(len(input_ids), 1, generator=generator, dtype=torch.float64)
        output.pooler_output = torch.randn(len(input_ids), 16, generator=generator, dtype=torch.float64) * lengths
        said[len(said)] = output.pooler_output.numpy()
        return output

    clip.model.get_text_features = get_text_features
    found = clip.classifier("tv remote").numpy()
    assert len(said) == len(found) == 10 and said[0].shape == (3, 16)
    for row, sentences in zip(found, said.values(), strict=True):
        total = sum(sentence / np.sqrt((sentence**2).sum()) for sentence in sentences)
        np.testing.assert_allclose(row, total / np.sqrt((total**2).sum()), rtol=1e-12)


def test_more_objects_than_a_batch_are_all_named_and_none_are_none(folders):
    clip = load_clip_colours(folders[1], "cpu")
    mask = np.zeros((50, 70), dtype=bool)
    mask[5:25, 5:25] = True
    assert clip.colours(pictures(1)[0], []) == []
    assert len(set(clip.colours(pictures(1)[0], [object_in(mask)] * 19))) == 1
    assert len(clip.colours(pictures(1)[0], [object_in(mask)] * 19)) == 19


# -- folders that are wrong ----------------------------------------------------------------------------------------


def refusal(mask2former: Path, clip: Path) -> str:
    with pytest.raises(UserError) as error:
        load_mask2former_detector(mask2former, clip, "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_of_something_else_is_refused_in_one_line(folders, tmp_path):
    mask2former, clip = folders
    assert refusal(tmp_path / "none", clip) == f"{tmp_path / 'none'} holds no Mask2Former: config.json is missing"
    assert refusal(clip, clip) == f"{clip} holds no Mask2Former: its config.json is of a 'clip' model"
    assert refusal(mask2former, mask2former).startswith(f"{mask2former} holds no CLIP: tokenizer.json or vocab.json is")


def damaged(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_a_damaged_folder_is_refused_in_one_line(folders, tmp_path):
    mask2former, clip = folders
    cut = damaged(mask2former, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1000])
    assert refusal(cut, clip).startswith(f"{cut} holds no Mask2Former: ")
    no_config = damaged(mask2former, tmp_path / "no_config")
    (no_config / "config.json").write_text("{")
    assert refusal(no_config, clip).startswith(f"{no_config} holds no Mask2Former: ")
    no_pictures = damaged(clip, tmp_path / "no_pictures")
    (no_pictures / "preprocessor_config.json").unlink()
    assert refusal(mask2former, no_pictures).endswith("holds no CLIP: preprocessor_config.json is missing")
    no_words = damaged(clip, tmp_path / "no_words")
    (no_words / "tokenizer.json").write_text("{}")
    assert refusal(mask2former, no_words).startswith(f"{no_words} holds no CLIP: ")


def test_weights_that_a_folder_lacks_are_never_random(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    mask2former, clip = folders
    lacking = damaged(mask2former, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["class_predictor.bias"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    assert refusal(lacking, clip) == (
        f"{lacking} lacks 1 weights of its Mask2Former, class_predictor.bias first: copy it again"
    )
    pickled = damaged(mask2former, tmp_path / "pickled")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert refusal(pickled, clip).startswith(f"{pickled} holds no Mask2Former: ")


def test_a_model_of_other_classes_is_refused(folders, tmp_path):
    mask2former, clip = folders
    write_mask2former(tmp_path / "few", classes=70)
    assert "few tells 70 classes apart: GenEval needs a model of COCO's 80" in refusal(tmp_path / "few", clip)
    turned = damaged(mask2former, tmp_path / "turned")
    config = json.loads((turned / "config.json").read_text())
    config["id2label"] |= {"0": "bicycle", "1": "person"}
    (turned / "config.json").write_text(json.dumps(config))
    assert refusal(turned, clip).endswith("has 'bicycle' as class 0, where COCO has 'person'")
    spelled = damaged(mask2former, tmp_path / "spelled")
    config["id2label"] |= {"0": "person", "1": "bicycle", "62": "tvmonitor", "64": "mouse"}
    (spelled / "config.json").write_text(json.dumps(config))
    assert load_mask2former_detector(spelled, clip, "cpu").class_names[64] == "computer mouse"


def test_a_weight_that_is_not_finite_is_named(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    mask2former, clip = folders
    broken = damaged(mask2former, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["class_predictor.bias"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert refusal(broken, clip).startswith(f"{broken}: class_predictor.bias holds numbers that are not finite")

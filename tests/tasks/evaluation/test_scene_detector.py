"""Claims about the scene detector: it reads drawn scenes, clean or as a decoder leaves them, not blobs."""

import numpy as np
import pytest
from scipy import ndimage

from tasks.data.scene_vocabulary import COLOURS, SHAPES
from tasks.data.scenes import Scene, Shape, render, sample_scene
from tasks.evaluation.detectors.detector import Detection
from tasks.evaluation.detectors.scene_detector import SceneDetector

DETECTOR = SceneDetector()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(8)
    return [sample_scene(rng) for _ in range(200)]


@pytest.fixture(scope="module")
def pictures(scenes) -> np.ndarray:
    return np.stack([render(scene) for scene in scenes])


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def counted(pictures: np.ndarray) -> list[list[Detection]]:
    return [
        [found for found in detections if found.score > DETECTOR.thresholds.detection]
        for detections in DETECTOR.detect(pictures)
    ]


def share_read_right(scenes: list[Scene], pictures: np.ndarray) -> float:
    """Share of pictures whose shapes, colours and places are all found, and nothing else."""
    right = 0
    for scene, picture, detections in zip(scenes, pictures, counted(pictures), strict=True):
        colours = DETECTOR.colours(picture, detections)
        found = sorted((d.class_name, c, *centre(d.box)) for d, c in zip(detections, colours, strict=True))
        wanted = sorted((s.name, s.colour, s.x * len(picture), s.y * len(picture)) for s in scene.shapes)
        right += [f[:2] for f in found] == [w[:2] for w in wanted] and bool(
            np.allclose([f[2:] for f in found], [w[2:] for w in wanted], atol=1.5 * len(picture) / 32)
        )
    return right / len(scenes)


def centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def scene_of(*shapes: Shape, ground: tuple[int, int, int] = (170, 172, 168)) -> Scene:
    return Scene("two_object", "", shapes, ground)


def test_drawn_scenes_are_read_right(scenes, pictures):
    assert share_read_right(scenes, pictures) >= 0.99


@pytest.mark.parametrize("noise", [5, 7])
def test_noisy_scenes_are_read_right(scenes, pictures, noise):
    noisy = to_bytes(pictures + np.random.default_rng(noise).normal(0, noise, pictures.shape))
    assert share_read_right(scenes, noisy) >= 0.98


@pytest.mark.parametrize("blur", [0.5, 0.7])
def test_blurred_scenes_are_read_right(scenes, pictures, blur):
    blurred = ndimage.gaussian_filter(pictures.astype(float), (0, blur, blur, 0))
    assert share_read_right(scenes, to_bytes(blurred)) >= 0.97


def test_larger_pictures_are_read_as_well(scenes):
    assert share_read_right(scenes[:60], np.stack([render(scene, 96) for scene in scenes[:60]])) >= 0.97


def test_every_shape_is_read_in_every_colour():
    for shape in SHAPES:
        for colour in COLOURS:
            picture = render(scene_of(Shape(shape, colour, 0.45, 0.52, 4.6 / 32)))
            (found,) = counted(picture[None])[0]
            assert (found.class_name, DETECTOR.colours(picture, [found])) == (shape, [colour])


@pytest.mark.parametrize(("ground", "colour"), [("white", "red"), ("black", "white"), ("blue", "yellow")])
def test_a_ground_in_a_palette_colour_is_no_obstacle(ground, colour):
    picture = render(scene_of(Shape("ring", colour, 0.5, 0.5, 0.2), ground=COLOURS[ground]))
    (found,) = counted(picture[None])[0]
    assert (found.class_name, DETECTOR.colours(picture, [found])) == ("ring", [colour])


def test_box_and_mask_cover_the_shape():
    picture = render(scene_of(Shape("square", "red", 0.5, 0.25, 0.25 / 0.86)))
    (found,) = DETECTOR.detect(picture[None])[0]
    inside = np.zeros((32, 32), dtype=bool)
    inside[:16, 8:24] = True
    assert found.box == (8, 0, 24, 16)
    assert np.array_equal(found.mask, inside)


def test_touching_shapes_of_two_colours_are_told_apart():
    left, right = Shape("circle", "red", 0.3, 0.5, 0.19), Shape("square", "blue", 0.62, 0.5, 0.17)
    (found,) = counted(render(scene_of(left, right))[None])
    assert sorted(one.class_name for one in found) == ["circle", "square"]


def test_two_shapes_grown_together_in_one_colour_count_as_neither():
    merged = scene_of(Shape("circle", "red", 0.32, 0.5, 0.19), Shape("square", "red", 0.6, 0.5, 0.17))
    assert counted(render(merged)[None]) == [[]]


@pytest.mark.parametrize("shape", SHAPES)
def test_half_a_shape_does_not_count_as_that_shape(shape):
    picture = render(scene_of(Shape(shape, "blue", 0.5, 0.5, 0.25)))
    picture[:, 16:] = (170, 172, 168)
    assert shape not in [found.class_name for found in counted(picture[None])[0]]


def test_a_stretched_circle_does_not_count():
    round_one = render(scene_of(Shape("circle", "green", 0.5, 0.5, 0.25))).astype(float)
    stretched = to_bytes(ndimage.zoom(round_one, (1, 1.5, 1), order=1))
    assert len(DETECTOR.detect(stretched[None])[0]) == 1
    assert counted(stretched[None]) == [[]]


def test_random_blobs_rarely_count_as_shapes():
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[:32, :32]
    bump = 3 * np.exp(-((rows - 16) ** 2 + (columns - 16) ** 2) / 98)
    palette = np.array(list(COLOURS.values()))
    blobs = []
    for _ in range(300):
        field = ndimage.gaussian_filter(rng.normal(size=(32, 32)), 2)
        alpha = np.clip(2 * (field / field.std() * 0.5 + bump - 1.6) + 0.5, 0, 1)[:, :, None]
        blobs.append(170 + alpha * (palette[rng.integers(len(palette))] - 170))
    found = counted(to_bytes(np.stack(blobs)))
    assert sum(len(DETECTOR.detect(to_bytes(blob)[None])[0]) for blob in blobs[:50]) >= 50  # they are looked at
    assert np.mean([len(one) > 0 for one in found]) < 0.03


def test_plain_and_noise_pictures_hold_no_shapes():
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    assert counted(np.full((1, 32, 32, 3), 90, dtype=np.uint8)) == [[]]
    assert counted(noise) == [[]] * 5

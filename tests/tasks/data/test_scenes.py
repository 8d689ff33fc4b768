"""Claims about scenes: what is drawn is what the caption says, and held-out combinations are never drawn."""

import itertools
import re
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tasks.data.scene_shapes import AREAS, CENTROID_Y, coverage
from tasks.data.scene_vocabulary import COLOURS, HELD_OUT, NUMBERS, RELATIONS, SHAPES, TASKS, is_held_out, lines
from tasks.data.scenes import TASK_WEIGHTS, Scene, draw_task, render, sample_scene
from tasks.evaluation.relative_position import relations
from tasks.params.picture_params import SceneTask


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(5)
    return [sample_scene(rng) for _ in range(4000)]


def box(shape, side: int = 32) -> tuple[float, float, float, float]:
    x, y, size = shape.x * side, shape.y * side, shape.size * side
    return x - size, y - size, x + size, y + size


def drawn_with_pillow(name: str, x: float, y: float, size: float, side: int, fine: int = 40) -> np.ndarray:
    """The shape's coverage by Pillow's polygons and ellipses on a grid 40 times finer."""
    image = Image.new("L", (side * fine, side * fine))
    draw = ImageDraw.Draw(image)

    def points(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return [((x + size * dx) * fine - 0.5, (y + size * dy) * fine - 0.5) for dx, dy in pairs]

    def disc(radius: float, fill: int) -> None:
        draw.ellipse(points((-radius, -radius), (radius, radius)), fill=fill)

    if name in ("circle", "ring"):
        disc(1, 255)
        if name == "ring":
            disc(0.55, 0)
    elif name == "square":
        draw.polygon(points((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)), fill=255)
    elif name == "triangle":
        draw.polygon(points((0, -0.95), (1, 0.85), (-1, 0.85)), fill=255)
    elif name == "bar":
        draw.polygon(points((-1, -0.34), (1, -0.34), (1, 0.34), (-1, 0.34)), fill=255)
    else:
        draw.polygon(points((-1, -0.34), (1, -0.34), (1, 0.34), (-1, 0.34)), fill=255)
        draw.polygon(points((-0.34, -1), (0.34, -1), (0.34, 1), (-0.34, 1)), fill=255)
    return np.asarray(image, dtype=np.float64).reshape(side, fine, side, fine).mean(axis=(1, 3)) / 255


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_look_like_polygons_drawn_on_a_fine_grid(name):
    for x, y, size in [(16.3, 15.6, 6.2), (12.0, 14.5, 8.7)]:
        difference = np.abs(coverage(name, x, y, size, 32, 32) - drawn_with_pillow(name, x, y, size, 32))
        assert difference.max() < 0.35  # at corners, where the distance to two lines is no distance to the corner
        assert difference.sum() < 0.03 * AREAS[name] * size**2


@pytest.mark.parametrize("name", SHAPES)
def test_area_and_centre_of_mass_of_shapes_are_as_stated(name):
    covered = coverage(name, 50.3, 49.6, 30, 100, 100)
    pixels = np.arange(100) + 0.5
    assert covered.sum() == pytest.approx(AREAS[name] * 900, rel=2e-3)
    assert covered.sum(axis=0) @ pixels / covered.sum() == pytest.approx(50.3, abs=0.1)
    assert covered.sum(axis=1) @ pixels / covered.sum() == pytest.approx(49.6 + 30 * CENTROID_Y[name], abs=0.1)


def test_same_seed_draws_the_same_scenes_and_pixels():
    first, second = (np.random.default_rng(3) for _ in range(2))
    for _ in range(20):
        a, b = sample_scene(first), sample_scene(second)
        assert a == b
        assert np.array_equal(render(a), render(b))


def test_scenes_of_chosen_tasks_are_of_these_alone_in_the_proportions_of_all_and_never_held_out():
    chosen, count = ("position", "single_object"), 2000
    rng = np.random.default_rng(1)
    drawn = [sample_scene(rng, draw_task(rng, chosen)) for _ in range(count)]
    tags = Counter(scene.tag for scene in drawn)
    share = TASK_WEIGHTS["position"] / (TASK_WEIGHTS["position"] + TASK_WEIGHTS["single_object"])
    assert tags.keys() == set(chosen)
    assert abs(tags["position"] - share * count) < 6 * (count * share * (1 - share)) ** 0.5
    held_out = {line["prompt"] for task in chosen for line in lines(task) if is_held_out(line)}
    assert held_out and not held_out & {scene.caption for scene in drawn}


def test_the_tasks_that_params_may_choose_are_those_of_scenes():
    assert get_args(SceneTask) == TASKS


def test_shapes_never_touch_and_never_leave_the_picture(scenes):
    for scene in scenes[:600]:
        total = np.zeros((32, 32))
        for shape in scene.shapes:
            covered = coverage(shape.name, shape.x * 32, shape.y * 32, shape.size * 32, 32, 32) > 0
            assert min(box(shape)) > 0.99 and max(box(shape)) < 31.01
            total += covered
        assert total.max() <= 1
        for a, b in itertools.combinations(scene.shapes, 2):
            apart = np.maximum(np.subtract(box(a)[:2], box(b)[2:]), np.subtract(box(b)[:2], box(a)[2:]))
            assert apart.max() > 1.19


def test_pixels_show_ground_and_palette_colours(scenes):
    for scene in scenes[:200]:
        picture = render(scene)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        assert tuple(picture[0, 0]) == scene.ground
        shown = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
        assert {COLOURS[shape.colour] for shape in scene.shapes} <= shown


def test_a_scene_scales_with_its_picture(scenes):
    for scene in scenes[:50]:
        coarse = render(scene, 128).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(coarse - render(scene)).mean() < 1.5


def test_captions_are_true_of_their_scenes(scenes):
    said = re.compile(r"an? (?:(\w+) )?(\w+)")
    words = {word: number for number, word in NUMBERS.items()}
    for scene in scenes:
        body = scene.caption.removeprefix("a photo of ")
        if scene.tag == "counting":
            number, plural = body.split()
            names = {shape.name for shape in scene.shapes}
            assert len(scene.shapes) == words[number] and len(names) == 1
            assert plural in {form for name in names for form in (name + "s", name + "es")}
        elif scene.tag == "position":
            relation = next(relation for relation in RELATIONS if f" {relation} " in body)
            placed, target = (part.split()[-1] for part in body.split(f" {relation} "))
            by_name = {shape.name: shape for shape in scene.shapes}
            assert len(scene.shapes) == 2
            assert relations(box(by_name[placed]), box(by_name[target])) == (relation,)
        else:
            parts = [said.fullmatch(part).groups() for part in body.split(" and ")]
            assert [name for _, name in parts] == [shape.name for shape in scene.shapes]
            assert all(colour in (None, shape.colour) for (colour, _), shape in zip(parts, scene.shapes, strict=True))


def test_held_out_captions_are_never_drawn(scenes):
    captions = {scene.caption for scene in scenes}
    assert not captions & {line["prompt"] for tag in TASKS for line in lines(tag) if is_held_out(line)}


def test_held_out_numbers_are_as_documented():
    held_out = {tag: sum(map(is_held_out, lines(tag))) for tag in TASKS}
    doubled = {tag: count * (1 if tag == "colors" else 2) for tag, count in HELD_OUT.items()}
    assert held_out == {"single_object": 0, "counting": 0, **doubled}


def test_a_caption_and_its_mirror_are_held_out_together():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    held_out = {line["prompt"]: is_held_out(line) for tag in TASKS for line in lines(tag)}
    for a, b in itertools.permutations(SHAPES, 2):
        assert held_out[f"a photo of a {a} and a {b}"] == held_out[f"a photo of a {b} and a {a}"]
        for relation in RELATIONS:
            assert (
                held_out[f"a photo of a {a} {relation} a {b}"]
                == held_out[f"a photo of a {b} {opposite[relation]} a {a}"]
            )
    assert held_out["a photo of a blue ring and a red cross"] == held_out["a photo of a red cross and a blue ring"]


def test_each_task_has_all_its_distinct_prompts():
    prompts = [line["prompt"] for tag in TASKS for line in lines(tag)]
    assert [len(lines(tag)) for tag in TASKS] == [6, 30, 18, 60, 120, 2700]
    assert len(set(prompts)) == len(prompts)
    assert {"a photo of four crosses", "a photo of an orange ring and a blue square"} <= set(prompts)


def test_every_shape_colour_relation_and_task_is_well_covered(scenes):
    shapes = Counter(shape.name for scene in scenes for shape in scene.shapes)
    colours = Counter(shape.colour for scene in scenes for shape in scene.shapes)
    tags = Counter(scene.tag for scene in scenes)
    pairs = Counter((shape.colour, shape.name) for scene in scenes for shape in scene.shapes)
    said = Counter(r for scene in scenes for r in RELATIONS if f" {r} " in scene.caption)
    assert min(shapes.values()) > 0.14 * shapes.total() and min(colours.values()) > 0.08 * colours.total()
    assert len(pairs) == 60 and min(pairs.values()) > 0.012 * pairs.total()
    assert min(said.values()) > 0.2 * said.total()
    assert sum(TASK_WEIGHTS.values()) == pytest.approx(1)
    assert all(tags[tag] == pytest.approx(TASK_WEIGHTS[tag] * len(scenes), rel=0.15) for tag in TASKS)


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ValueError, match="'colours' is unknown: use one of single_object"):
        sample_scene(np.random.default_rng(0), "colours")

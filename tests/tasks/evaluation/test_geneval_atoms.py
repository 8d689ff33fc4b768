"""Which of object, count, colour and relation a picture fails follows from its verdict's reasons."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.scene_vocabulary import COLOURS, SHAPES, TASKS, lines
from tasks.evaluation.detectors.detector import Detection
from tasks.evaluation.geneval_atoms import ATOMS, asked_atoms, atoms_of, summarize_atoms, write_atoms
from tasks.evaluation.geneval_rules import judge_picture
from tasks.evaluation.relative_position import relations
from tests.helpers.published_geneval import PROMPTS, needs_published

NO_MASK = np.zeros((1, 1), dtype=bool)
TWO = {"tag": "two_object", "include": [{"class": "cup", "count": 1}, {"class": "tv remote", "count": 1}]}
COUNTED = {
    "tag": "counting",
    "include": [{"class": "cup", "count": 3}],
    "exclude": [{"class": "cup", "count": 4}],
}
COLOURED = {
    "tag": "color_attr",
    "include": [{"class": "cup", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}],
}
PLACED = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}],
}


@pytest.mark.parametrize(
    ("line", "reason", "wanted"),
    [
        (TWO, "", {"object": True}),
        (TWO, "expected tv remote>=1, found 0", {"object": False}),
        (COUNTED, "", {"object": True, "count": True}),
        (COUNTED, "expected cup>=3, found 0", {"object": False, "count": None}),
        (COUNTED, "expected cup>=3, found 2", {"object": True, "count": False}),
        (COUNTED, "expected cup<4, found 5", {"object": True, "count": False}),
        (COLOURED, "", {"object": True, "colour": True}),
        (COLOURED, "expected cup>=1, found 0", {"object": False, "colour": None}),
        (COLOURED, "expected red cup>=1, found 0 red; and 1 blue", {"object": True, "colour": False}),
        (
            COLOURED,
            "expected red cup>=1, found 0 red; and 1 blue\nexpected dog>=1, found 0",
            {"object": False, "colour": False},
        ),
        (PLACED, "", {"object": True, "relation": True}),
        (PLACED, "expected cup left of target, found above and right of target", {"object": True, "relation": False}),
        (PLACED, "expected cup left of target, found  target", {"object": True, "relation": False}),
        (PLACED, "expected dog>=1, found 0\nno target for cup to be left of", {"object": False, "relation": None}),
        (PLACED, "expected cup>=1, found 0", {"object": False, "relation": None}),
    ],
)
def test_each_reason_says_which_atom_failed_and_which_was_not_looked_at(
    line: dict[str, Any], reason: str, wanted: dict[str, bool | None]
) -> None:
    assert atoms_of(line, reason) == wanted


def test_a_reason_that_the_rules_do_not_give_is_refused() -> None:
    with pytest.raises(ValueError, match="'fits another caption' is no reason of GenEval's rules"):
        atoms_of(TWO, "fits another caption")


def thing(chance: random.Random, name: str, least_score: float) -> Detection:
    x, y = chance.uniform(0, 9), chance.uniform(0, 9)
    return Detection(name, chance.uniform(least_score, 1), (x, y, x + 4, y + 4), NO_MASK)


def atoms_by_hand(line: dict, kept: dict[str, list[Detection]], colour_of: dict[int, str]) -> dict[str, bool | None]:
    """The atoms of a prompt of one task, from what was detected and not from the verdict's words."""
    needs = line["include"]
    best = [kept.get(need["class"], [])[: need["count"]] for need in needs]
    enough = [len(found) >= need["count"] for need, found in zip(needs, best, strict=True)]
    atoms: dict[str, bool | None] = {"object": all(len(found) > 0 for found in best)}
    if line["tag"] == "counting":
        (need,), number = needs, len(kept.get(needs[0]["class"], []))
        limit = line["exclude"][0]["count"] if "exclude" in line else np.inf
        atoms["count"] = None if number == 0 else need["count"] <= number < limit
    if "color" in needs[0]:
        right = [
            all(colour_of[id(one)] == need["color"] for one in found) for need, found in zip(needs, best, strict=True)
        ]
        if any(there and not good for there, good in zip(enough, right, strict=True)):
            atoms["colour"] = False
        else:
            atoms["colour"] = True if all(enough) else None
    if "position" in needs[-1]:
        relation = needs[-1]["position"][0]
        atoms["relation"] = relation in relations(best[1][0].box, best[0][0].box) if all(enough) else None
    return atoms


def test_the_atoms_are_those_of_the_detections_for_every_task() -> None:
    chance = random.Random(0)
    counts: dict[tuple[str, bool | None], int] = {}
    for tag in TASKS:
        for _ in range(600):
            line = chance.choice(lines(tag))
            asked = [need["class"] for need in line["include"]]
            names = [chance.choice([*asked, *asked, chance.choice(list(SHAPES))]) for _ in range(chance.randrange(6))]
            found = [thing(chance, name, 0.85 if tag == "counting" else 0.2) for name in names]
            wanted = [need["color"] for need in line["include"] if "color" in need]
            colour_of = {id(one): chance.choice([*wanted, *wanted, *COLOURS]) for one in found}
            verdict = judge_picture(line, found, lambda some, of=colour_of: [of[id(one)] for one in some])
            atoms = atoms_of(line, verdict.reason)
            assert atoms == atoms_by_hand(line, verdict.kept, colour_of), (line, verdict.reason)
            assert verdict.correct == (set(atoms.values()) == {True})
            for item in atoms.items():
                counts[item] = counts.get(item, 0) + 1
    for atom in ATOMS:
        assert counts[atom, True] > 20 and counts[atom, False] > 20
        assert atom == "object" or counts[atom, None] > 20


@needs_published
def test_the_published_prompts_ask_for_the_atoms_of_their_tasks() -> None:
    wanted = {
        "single_object": {"object"},
        "two_object": {"object"},
        "counting": {"object", "count"},
        "colors": {"object", "colour"},
        "position": {"object", "relation"},
        "color_attr": {"object", "colour"},
    }
    for text in PROMPTS.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        assert asked_atoms(line) == wanted[line["tag"]]


def test_shares_are_over_the_pictures_where_the_rules_came_to_the_atom() -> None:
    reasons = [
        ["", "expected red cup>=1, found 0 red; and 1 blue", "expected cup>=1, found 0"],
        ["", ""],  # a prompt may have fewer pictures
        ["expected cup>=1, found 0\nexpected dog>=1, found 0"],  # no colour was looked at in any of its pictures
    ]
    found = summarize_atoms([COLOURED, COLOURED, COLOURED], reasons, samples=500, seed=0)
    assert list(found) == ["object", "colour"]
    assert (found["object"]["asked"], found["object"]["looked_at"]) == (6, 6)
    assert found["object"]["value"] == pytest.approx(4 / 6)
    assert (found["colour"]["asked"], found["colour"]["looked_at"]) == (6, 4)
    assert found["colour"]["value"] == pytest.approx(3 / 4)
    # The bootstrap draws two prompts, of shares 1/2 and 1; half of the draws have both.
    assert (found["colour"]["low"], found["colour"]["high"]) == (0.5, 1)


def test_each_prompt_s_atoms_are_counted_over_its_pictures(tmp_path: Path) -> None:
    reasons = [["", "expected cup>=1, found 0", "expected cup left of target, found above target"], [""]]
    write_atoms(tmp_path / "atoms.csv", [PLACED | {"prompt": "a cup left of a dog"}, TWO | {"prompt": "two"}], reasons)
    assert (tmp_path / "atoms.csv").read_text().splitlines() == [
        "number,tag,prompt,atom,pictures,looked_at,holds",
        "0,position,a cup left of a dog,object,3,3,2",
        "0,position,a cup left of a dog,relation,3,2,1",
        "1,two_object,two,object,1,1,1",
    ]


def test_an_atom_that_no_picture_reached_has_counts_alone() -> None:
    found = summarize_atoms([PLACED], [["expected cup>=1, found 0"]], samples=10, seed=0)
    assert found["relation"] == {"asked": 1, "looked_at": 0}
    assert found["object"]["value"] == 0

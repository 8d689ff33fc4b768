"""GenEval atom by atom: which of object, count, colour and relation a picture fails, read from its verdict's reasons.

A prompt of GenEval asks for atoms. `object`: each class that it names is there at all. `count`: there are as many as
asked, and no more where the line excludes more. `colour`: as many as asked have the colour. `relation`: one object
stands left of, right of, above or below the other. GenEval's rules look at them in this order and stop at the first
that fails, so a colour is looked at only where its objects were found. An atom that was not looked at is neither
right nor wrong.

The reasons are the published text. So verdicts that were kept on disk, and `results.jsonl` of GenEval's own tool, can
be read as well. GenEval itself reports tasks only. The atoms are ours.

Shapes: P prompts, N pictures of each.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.computing.seeds import numpy_generator
from tasks.data.scene_vocabulary import Line
from tasks.evaluation.score_statistics import score
from tasks.system.files import write_csv

ATOMS = ("object", "count", "colour", "relation")
"""The atoms, in the order in which the rules look at them."""
COLUMNS = ("number", "tag", "prompt", "atom", "pictures", "looked_at", "holds")
"""The columns of the CSV of all prompts, `atoms.csv`."""

_TOO_FEW = re.compile(r"expected (?P<name>.+)>=(?P<wanted>\d+), found (?P<found>\d+)")
_TOO_MANY = re.compile(r"expected .+<\d+, found \d+")
_WRONG_COLOUR = re.compile(r"expected (?P<name>.+)>=\d+, found \d+ .*")
_NO_TARGET = re.compile(r"no target for .+ to be .+")
_MISPLACED = re.compile(r"expected .+ target, found .* target")


def asked_atoms(line: Line) -> set[str]:
    """The atoms that a prompt's line asks for."""
    needs = line["include"]
    found = {"object"}
    if any(need["count"] > 1 for need in needs) or line.get("exclude"):
        found.add("count")
    if any("color" in need for need in needs):
        found.add("colour")
    if any("position" in need for need in needs):
        found.add("relation")
    return found


def atoms_of(line: Line, reason: str) -> dict[str, bool | None]:
    """Whether each atom that `line` asks for holds in a picture with these reasons; None if it was not looked at.

    `reason` has a line for each part of the prompt that the picture fails, and is empty for a picture that is right.
    Raises ValueError for a reason that GenEval's rules do not give.
    """
    failed: set[str] = set()
    unmet: set[str] = set()
    no_target = False
    for text in filter(None, reason.split("\n")):
        if few := _TOO_FEW.fullmatch(text):
            failed.add("count" if int(few["found"]) else "object")
            unmet.add(few["name"])
        elif wrong := _WRONG_COLOUR.fullmatch(text):
            failed.add("colour")
            unmet.add(wrong["name"])
        elif _TOO_MANY.fullmatch(text):
            failed.add("count")
        elif _MISPLACED.fullmatch(text):
            failed.add("relation")
        elif _NO_TARGET.fullmatch(text):
            no_target = True
        else:
            raise ValueError(f"{text!r} is no reason of GenEval's rules")
    unseen = _not_looked_at(line, unmet, no_target)
    asked = asked_atoms(line)
    return {atom: False if atom in failed else (None if atom in unseen else True) for atom in ATOMS if atom in asked}


def _not_looked_at(line: Line, unmet: set[str], no_target: bool) -> set[str]:
    """The atoms of which the rules did not look at every part.

    `unmet` has the classes of which there are too few, and the coloured classes (`red cup`) of which too few have their
    colour. With `no_target` an object was found whose target was not.
    """
    excluded = {need["class"] for need in line.get("exclude", ())}
    found: set[str] = set()
    for need in line["include"]:
        too_few = need["class"] in unmet
        if too_few and (need["count"] > 1 or need["class"] in excluded):
            found.add("count")
        if too_few and "color" in need:
            found.add("colour")
        if "position" in need and (no_target or too_few or f"{need.get('color')} {need['class']}" in unmet):
            found.add("relation")
    return found


def summarize_atoms(
    lines: Sequence[Line], reasons_PN: Sequence[Sequence[str]], samples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """The share of pictures in which each atom holds, among those where it was looked at, with its interval.

    `reasons_PN` has the reasons of each prompt's pictures, of which prompts may have different numbers. `asked` counts
    the pictures whose prompt asks for the atom, and `looked_at` those of them where it was reached. The 95 % interval
    is the bootstrap's over prompts. An atom that no picture reached has counts alone, and an atom that no prompt asks
    for is left out.
    """
    width = max(map(len, reasons_PN))
    found: dict[str, dict[str, Any]] = {}
    for atom in ATOMS:
        rows = [place for place, line in enumerate(lines) if atom in asked_atoms(line)]
        if not rows:
            continue
        holds_PN = np.stack([_padded((atoms_of(lines[p], one)[atom] for one in reasons_PN[p]), width) for p in rows])
        found[atom] = {"asked": sum(len(reasons_PN[p]) for p in rows), "looked_at": int(np.isfinite(holds_PN).sum())}
        reached = holds_PN[np.isfinite(holds_PN).any(axis=1)]
        if len(reached):
            rng = numpy_generator(seed, "atoms bootstrap", atom)
            found[atom] |= asdict(score(reached, [atom] * len(reached), samples, rng).overall)
    return found


def write_atoms(path: Path, lines: Sequence[Line], reasons_PN: Sequence[Sequence[str]]) -> None:
    """Write a CSV with a row for each atom of each prompt: in how many of its pictures it was looked at, and held."""
    rows = []
    for number, (line, reasons) in enumerate(zip(lines, reasons_PN, strict=True)):
        found = [atoms_of(line, reason) for reason in reasons]
        for atom in found[0]:
            values = [atoms[atom] for atoms in found]
            counts = (len(values), len(values) - values.count(None), values.count(True))
            rows.append(dict(zip(COLUMNS, (number, line["tag"], line["prompt"], atom, *counts), strict=True)))
    write_csv(path, COLUMNS, rows)


def _padded(values: Iterable[bool | None], width: int) -> NDArray[np.float64]:
    """The values as 0, 1 and NaN, filled up with NaN to `width`."""
    row = np.full(width, np.nan)
    for place, value in enumerate(values):
        row[place] = np.nan if value is None else float(value)
    return row

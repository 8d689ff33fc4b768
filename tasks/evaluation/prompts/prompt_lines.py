"""Prompt lines in GenEval's schema. They are checked when read, so no picture is drawn for a bad line."""

import json
from pathlib import Path
from typing import Any

from tasks.data.scene_vocabulary import COLOURS, RELATIONS, Line
from tasks.system.errors import UserError

LINE_KEYS = ("tag", "include", "prompt")


def parse_line(text: str, where: str) -> Line:
    """One prompt line. Raises UserError, naming `where` it stands, if it is not JSON or not of GenEval's schema.

    Any tag and any class will do: a tag is only a task of the score, and only `counting` has rules of its own.
    """
    try:
        line = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(line, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # also for what no file of results can hold: 1e999, half a character
        raise UserError(f"{where} cannot be read as JSON ({error}): it must hold one GenEval prompt line") from None
    return check_line(line, where)


def check_line(line: Any, where: str) -> Line:
    """A value as a prompt line. Raises UserError, naming `where` it stands, if it is not of GenEval's schema."""
    if not isinstance(line, dict) or not all(key in line for key in LINE_KEYS):
        raise UserError(f"{where} is no GenEval prompt line: it must have the keys {', '.join(LINE_KEYS)}")
    if problem := _problem(line):
        raise UserError(f"{where} is no GenEval prompt line: {problem}")
    return line


def _refuse_constant(name: str) -> None:
    """Raise ValueError for NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is no number of JSON")


def read_lines(path: Path) -> list[Line]:
    """The lines of a file such as GenEval's `evaluation_metadata.jsonl`. Raises UserError naming file and line."""
    try:
        # `splitlines` would end a line also at characters that a prompt may hold, such as U+2028.
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): it must hold GenEval's prompt lines") from None
    lines = [parse_line(text, f"{path} line {number}") for number, text in enumerate(texts, 1) if text.strip()]
    if not lines:
        raise UserError(f"{path} is empty: it must hold GenEval's prompt lines")
    return lines


def named_classes(line: Line) -> list[str]:
    """The classes that a line asks for or excludes."""
    return [need["class"] for need in (*line["include"], *line.get("exclude", ()))]


def _problem(line: Line) -> str | None:
    """What is wrong with a line that has all its keys, or None."""
    for key in ("tag", "prompt"):
        if not isinstance(line[key], str):
            return f"{key} is {line[key]!r}, not text"
    for key in ("include", "exclude"):
        needs = line.get(key, [])
        if not isinstance(needs, list):
            return f"{key} is {needs!r}, not a list"
        for index, need in enumerate(needs):
            if problem := _need_problem(need, index):
                return f"{key}[{index}] {problem}"
    return None


def _need_problem(need: Any, index: int) -> str | None:
    """What is wrong with the need at `index`, or None. A position must refer to an earlier need."""
    if not isinstance(need, dict) or not isinstance(need.get("class"), str):
        return "has no class"
    if type(need.get("count")) is not int or need["count"] < 1:
        return f"has count {need.get('count')!r}: it must be 1 or above"
    colour = need.get("color", "red")
    if not isinstance(colour, str) or colour not in COLOURS:
        return f"has color {need['color']!r}: it must be one of {', '.join(COLOURS)}"
    match need.get("position", [RELATIONS[0], 0]):
        case [relation, int(target)] if relation in RELATIONS and (0 <= target < index or "position" not in need):
            return None
    return f"has position {need['position']!r}: it must be a relation ({', '.join(RELATIONS)}) and an earlier place"

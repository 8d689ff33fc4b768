"""The table of a sweep: a row for each point and model. For each setting, the mean over its seeds with an interval."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from flows.sweeps.place_interface import PointState
from flows.sweeps.point_folder import outcome
from flows.sweeps.points import Point
from flows.sweeps.sweep_file import Sweep
from tasks.system.files import write_csv

LEVEL = 0.95
"""The confidence level of the intervals."""


@dataclass(frozen=True)
class Row:
    """A row of the table: one model of one point, or a point that has no model.

    `score` is the score by `scorer` when the judge chooses one of `pictures` pictures for each prompt. `low` and `high`
    are its interval. `seconds` is the time to draw these pictures, or None if it was not measured.
    """

    point: str
    setting: Mapping[str, Any]
    seed: int
    state: str
    reason: str
    folder: str
    model: str = ""
    pictures: int = 1
    depth: int | None = None
    parameters: int | None = None
    heldout_loss: float | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float | None = None
    scorer: str = ""


@dataclass(frozen=True)
class ScoredSetting:
    """One model of a setting: means over the setting's seeds, and the 95 % interval of the mean score.

    With one seed, the interval is over prompts instead. The setting marked `best` has the highest score; equal scores
    are decided by the fewest parameters, then by the fewest pictures. A setting is in the `pareto` set if no other
    setting is at least as good in score, parameters and seconds, and better in one of the three.
    """

    label: str
    model: str
    pictures: int
    seeds: int
    parameters: float
    heldout_loss: float
    scorer: str
    score: float
    low: float
    high: float
    seconds: float | None
    best: bool = False
    pareto: bool = False


def rows_of(sweep: Sweep, point: Point, state: PointState) -> list[Row]:
    """The rows of a point. A point that has failed has one row, which says why."""
    row = Row(point.key, point.setting, point.seed, state.phase, state.reason, str(point.folder))
    ended = outcome(point.folder)
    if state.phase != "done" or ended is None:
        return [row]
    chosen = [model for model in ended.models if any(fnmatch(model["name"], pattern) for pattern in sweep.models)]
    return [one for model in chosen for one in _model_rows(row, model, sweep)] or [row]


def _model_rows(row: Row, model: Mapping[str, Any], sweep: Sweep) -> list[Row]:
    scores = {1: model["score"]}
    if sweep.score == "best_of":
        scores = {int(number): score for number, score in model["best_of"].items()}
    seconds = model.get("seconds_per_picture")
    return [
        replace(
            row,
            model=model["name"],
            pictures=pictures,
            depth=model["depth"],
            parameters=model["parameters"],
            heldout_loss=model["heldout_loss"],
            scorer=model["scorer"],
            score=score["overall"],
            low=score["low"],
            high=score["high"],
            seconds=None if seconds is None else seconds * pictures,
        )
        for pictures, score in sorted(scores.items())
    ]


def settings_of(rows: Sequence[Row]) -> list[ScoredSetting]:
    """The settings of the rows that have a score, in the order of the rows. The best and the Pareto set are marked."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.score is not None:
            groups.setdefault((_label(row.setting), row.model, row.pictures), []).append(row)
    settings = [_setting(*key, group) for key, group in groups.items()]
    best = max(settings, key=lambda one: (one.score, -one.parameters, -one.pictures), default=None)
    marked = zip(settings, pareto_set(settings), strict=True)
    return [replace(one, best=one is best, pareto=pareto) for one, pareto in marked]


def pareto_set(settings: Sequence[ScoredSetting]) -> list[bool]:
    """Whether each setting is in the Pareto set; see `ScoredSetting`. Seconds count where both settings were timed."""
    timed = [np.nan if one.seconds is None else one.seconds for one in settings]
    goods = np.array([(one.score, -one.parameters, -time) for one, time in zip(settings, timed, strict=True)])
    gains = (np.nan_to_num(goods - one) for one in goods)  # a time that is missing is neither gain nor loss
    return [not np.any((gain >= 0).all(axis=1) & (gain > 0).any(axis=1)) for gain in gains]


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of at least two scores, by Student's t distribution."""
    half = t.ppf((1 + LEVEL) / 2, len(scores) - 1) * np.std(scores, ddof=1) / np.sqrt(len(scores))
    return float(np.mean(scores) - half), float(np.mean(scores) + half)


def _setting(label: str, model: str, pictures: int, rows: Sequence[Row]) -> ScoredSetting:
    scores = [row.score for row in rows]
    low, high = interval(scores) if len(rows) > 1 else (rows[0].low, rows[0].high)
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return ScoredSetting(
        label,
        model,
        pictures,
        len(rows),
        float(np.mean([row.parameters for row in rows])),
        float(np.mean([row.heldout_loss for row in rows])),
        rows[0].scorer,
        float(np.mean(scores)),
        low,
        high,
        float(np.mean(seconds)) if seconds else None,
    )


def write_table(path: Path, sweep: Sweep, rows: Sequence[Row], settings: Sequence[ScoredSetting]) -> None:
    """Write the rows as CSV, with a column for each key of the sweep, and two that mark best and Pareto settings."""
    marks = {(one.label, one.model, one.pictures): one for one in settings}
    keys = list(dict.fromkeys(key for setting in sweep.settings for key in setting))
    written = []
    for row in rows:
        mark = marks.get((_label(row.setting), row.model, row.pictures))
        own = {key: value for key, value in asdict(row).items() if key != "setting"}
        setting = {key: json.dumps(row.setting[key]) for key in row.setting}
        written.append(setting | own | {"best": bool(mark and mark.best), "pareto": bool(mark and mark.pareto)})
    columns = [*keys, *(name for name in Row.__dataclass_fields__ if name != "setting"), "best", "pareto"]
    write_csv(path, columns, written)


def _label(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in setting.items())

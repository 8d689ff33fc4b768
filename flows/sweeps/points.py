"""The runs that a sweep is made of: one for each setting and seed, and before them the stages that they share.

Each run has a key, made of all that its result depends on: params, code, the user's own files, and which stages are
run. Its folder under `runs/points/` is named by that key, so that a run that is done is found again, another value is
another folder, and an edit of the code never reaches a run that waits in a queue.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flows.building.stage_graph import upstream_of
from flows.building.workspace import COPIES, merged_params, overridden, profile_params
from flows.sweeps.sweep_file import SWEEPS, Sweep
from tasks.params.reading import build_params
from tasks.params.user_files import listing_digest, own_path, paths_of
from tasks.runtime.code_digest import code_digest
from tasks.stages import sections_of, stages_of, stems
from tasks.system.errors import UserError
from tasks.system.manifest import sha256_json

POINTS = COPIES / "points"
SEED = "compute.seed"
KEY_DIGITS = 16


@dataclass(frozen=True)
class Point:
    """One run: the pipeline with the params `values` in `folder`, all of it or the stages `only`.

    `setting` are the values that the sweep gives it beside the seed; `shared` is the run that must be done before it.
    """

    key: str
    label: str
    folder: Path
    values: Mapping[str, Any]
    setting: Mapping[str, Any]
    seed: int
    only: tuple[str, ...] | None = None
    shared: "Point | None" = None


def expand(project: Path, sweep: Sweep) -> list[Point]:
    """The points of a sweep in the order of its file, the seeds of a setting beside each other.

    Raises UserError, before anything is written, if a name or value of any point is wrong, or if a point changes a
    stage before the first that may differ.
    """
    params = profile_params(project, sweep.profile)
    seeds = sweep.seeds or (overridden(params, sweep.profile, {})["compute"]["seed"],)
    chosen = [(setting, seed) for setting in sweep.settings for seed in seeds]
    every = [overridden(params, sweep.profile, {**setting, SEED: seed}) for setting, seed in chosen]
    only = shared_stages(project, sweep)
    digests = PointKeys()
    before = {seed: _shared(project, sweep, seed, only, digests) for seed in seeds} if only else {}
    points = []
    for (setting, seed), values in zip(chosen, every, strict=True):
        needed = needed_stages(sweep, values)
        key, label = digests.key(values, needed), ", ".join(f"{name}={value}" for name, value in setting.items())
        label += f", seed {seed}" if len(seeds) > 1 else ""
        points.append(Point(key, label, project / POINTS / key, values, setting, seed, needed, before.get(seed)))
    return points


def _shared(project: Path, sweep: Sweep, seed: int, only: tuple[str, ...], digests: "PointKeys") -> Point:
    values = merged_params(project, sweep.profile, {SEED: seed})
    key = digests.key(values, only)
    return Point(key, f"shared stages, seed {seed}", project / POINTS / key, values, {}, seed, only)


def shared_stages(project: Path, sweep: Sweep) -> tuple[str, ...]:
    """The stages that are the same for all points of one seed: those before the first that differs, and beside it.

    Raises UserError if a key of the sweep is read by no stage, or by one before the first that differs.
    """
    where = SWEEPS / f"{sweep.name}.yaml"
    values = merged_params(project, sweep.profile, {})
    above, reads = upstream_of(build_params(values, str(where))), {stem: sections_of(stem) for stem in stems()}
    first = {name for name in above if stem_of(name) == sweep.first}
    if not first:
        kinds = ", ".join(dict.fromkeys(stem_of(name) for name in above))
        raise UserError(f"{where}: from is {sweep.first!r}: it must be one of {kinds}")
    differs = set(first)
    for key in dict.fromkeys(key for setting in sweep.settings for key in setting):
        changed = [name for name in above if _covers(reads[stem_of(name)], key)]
        if not changed:
            raise UserError(f"{where}: {key} changes no stage")
        for name in changed:
            if name not in first and any(name in above[one] for one in first):
                raise UserError(f"{where}: {key} changes {name}, which comes before {sweep.first}: set from to {name}")
        differs.update(changed)
    needed = needed_stages(sweep, values) or tuple(above)
    return tuple(name for name in needed if name not in differs and not above[name] & differs)


def needed_stages(sweep: Sweep, values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The stages of a point with these params: those that the sweep goes until, and what they read; None for all.

    Raises UserError if one of them is no stage, or if none of them is the first that differs or reads it.
    """
    if not sweep.until:
        return None
    where, above = SWEEPS / f"{sweep.name}.yaml", upstream_of(build_params(dict(values), "params"))
    for name in sweep.until:
        if name not in above:
            raise UserError(f"{where}: until names {name!r}: it must be one of {', '.join(above)}")
    needed = tuple(name for name in above if any(name == one or name in above[one] for one in sweep.until))
    if sweep.first not in map(stem_of, needed):
        raise UserError(f"{where}: until {list(sweep.until)} does not need {sweep.first}, so that no point differs")
    return needed


def stem_of(stage: str) -> str:
    """`prune` for `prune@6`."""
    return stage.partition("@")[0]


def code_of_stages() -> str:
    """The digest of the code of all stages, as it is here now."""
    return sha256_json({kind: code_digest(kind) for kind in sorted(stems())})


def _covers(read: Iterable[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in read)


class PointKeys:
    """Makes keys; what is not of one point, the code and the user's own files, is read once."""

    def __init__(self) -> None:
        self._code, self._listing = cache(code_digest), cache(lambda path: listing_digest(own_path(path)))

    def key(self, values: Mapping[str, Any], only: tuple[str, ...] | None) -> str:
        """The key of a run: hex digits that are others if its params, stages, code or the user's own files are."""
        params = build_params(dict(values), "params")
        stages = only if only is not None else tuple(upstream_of(params))
        every = stages_of(params)
        paths = {path for name in stages for path in paths_of(every[name].user_files, params)}
        made_of = {
            "params": dict(values),
            "only": only,
            "code": {kind: self._code(kind) for kind in sorted({stem_of(stage) for stage in stages})},
            "own files": {path: self._listing(path) for path in sorted(paths)},
        }
        return sha256_json(made_of)[:KEY_DIGITS]

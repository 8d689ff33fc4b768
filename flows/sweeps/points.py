"""The points of a sweep: one for each setting and seed, and before them a point for the stages that they share.

A point's key is a digest of everything that its result depends on: params, code, the user's own files, and which stages
are run. The key names the point's folder under `runs/points/`. So a point that is done is found again, another value
gets another folder, and an edit of the code never reaches a point that waits in a queue.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flows.building.stage_graph import stages_until, stem_of, upstream_of
from flows.building.workspace import merged_params, overridden, profile_params
from flows.sweeps.sweep_file import SWEEPS, Sweep
from tasks.params.params_files import build_params
from tasks.params.user_files import listing_digest, own_path, paths_of
from tasks.runtime.code_digest import code_digest
from tasks.stages import sections_of, stages_of, stems
from tasks.system.errors import UserError
from tasks.system.manifest import sha256_json
from tasks.system.paths import COPIES

POINTS = COPIES / "points"
SEED = "compute.seed"
KEY_DIGITS = 16
"""How many hex digits of the digest make a key."""


@dataclass(frozen=True)
class Point:
    """One run of the pipeline with the params `values` in `folder`: of all stages, or of the stages `only`.

    `setting` holds the values by which the sweep's file describes this point, without the seed. `shared` is the point
    whose stages this one shares with others; it must be done first. `sweep` is the sweep's title, and `name` is what
    the point's runs are called in Prefect and MLflow: `prune-depth [3]`.
    """

    key: str
    label: str
    folder: Path
    values: Mapping[str, Any]
    setting: Mapping[str, Any]
    seed: int
    only: tuple[str, ...] | None = None
    shared: "Point | None" = None
    sweep: str = ""
    name: str = ""


def expand(project: Path, sweep: Sweep) -> list[Point]:
    """The points of a sweep in the order of its file. Points of one setting and several seeds follow each other.

    Raises UserError, before anything is written, if a name or value of any point is wrong, or if a point changes a
    stage upstream of the stage that the sweep's file names as `from`.
    """
    params = profile_params(project, sweep.profile)
    seeds = sweep.seeds or (overridden(params, sweep.profile, {})["compute"]["seed"],)
    chosen = [(setting, seed) for setting in sweep.settings for seed in seeds]
    all_values = [overridden(params, sweep.profile, {**setting, SEED: seed}) for setting, seed in chosen]
    only = shared_stages(project, sweep)
    point_keys = PointKeys()
    shared = {seed: _shared(project, sweep, seed, only, point_keys) for seed in seeds} if only else {}
    points = []
    for (setting, seed), values in zip(chosen, all_values, strict=True):
        needed = needed_stages(sweep, values)
        key, label = point_keys.key(values, needed), ", ".join(f"{name}={value}" for name, value in setting.items())
        of_seed = [f"seed {seed}"] if len(seeds) > 1 or not setting else []
        name = f"{sweep.title} {', '.join([*map(str, setting.values()), *of_seed])}"
        folder, label = project / POINTS / key, ", ".join(filter(None, [label, *of_seed]))
        points.append(Point(key, label, folder, values, setting, seed, needed, shared.get(seed), sweep.title, name))
    return points


def _shared(project: Path, sweep: Sweep, seed: int, only: tuple[str, ...], point_keys: "PointKeys") -> Point:
    values = merged_params(project, sweep.profile, {SEED: seed})
    key = point_keys.key(values, only)
    label, folder = f"shared stages, seed {seed}", project / POINTS / key
    return Point(key, label, folder, values, {}, seed, only, sweep=sweep.title, name=f"{sweep.title} {label}")


def shared_stages(project: Path, sweep: Sweep) -> tuple[str, ...]:
    """The stages whose outputs are the same for all points of one seed.

    They are the stages that neither read a key of the sweep, nor are the stage `from`, nor come after such a stage.
    Raises UserError if no stage reads a key of the sweep, or if a stage upstream of `from` reads it.
    """
    where = SWEEPS / f"{sweep.name}.yaml"
    values = merged_params(project, sweep.profile, {})
    upstream, reads = upstream_of(build_params(values, str(where))), {stem: sections_of(stem) for stem in stems()}
    first = {name for name in upstream if stem_of(name) == sweep.first}
    if not first:
        kinds = ", ".join(dict.fromkeys(stem_of(name) for name in upstream))
        raise UserError(f"{where}: from is {sweep.first!r}: it must be one of {kinds}")
    differs = set(first)
    for key in dict.fromkeys(key for setting in sweep.settings for key in setting):
        changed = [name for name in upstream if _covers(reads[stem_of(name)], key)]
        if not changed:
            raise UserError(f"{where}: {key} changes no stage")
        for name in changed:
            if name not in first and any(name in upstream[one] for one in first):
                raise UserError(f"{where}: {key} changes {name}, which comes before {sweep.first}: set from to {name}")
        differs.update(changed)
    needed = needed_stages(sweep, values) or tuple(upstream)
    return tuple(name for name in needed if name not in differs and not upstream[name] & differs)


def needed_stages(sweep: Sweep, values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The stages of a point with these params: those that the sweep's `until` names, and all upstream of them.

    None stands for all stages, where the sweep has no `until`. Raises UserError if `until` names something that is no
    stage, or if the stage `from` is not among the stages that are needed, since no point would then differ.
    """
    if not sweep.until:
        return None
    where = SWEEPS / f"{sweep.name}.yaml"
    needed = stages_until(sweep.until, build_params(dict(values), "params"), f"{where}: until")
    if sweep.first not in map(stem_of, needed):
        raise UserError(f"{where}: until {list(sweep.until)} does not need {sweep.first}, so that no point differs")
    return needed


def code_of_stages() -> str:
    """The digest of the code of all stages, as it is in the working directory now."""
    return sha256_json({kind: code_digest(kind) for kind in sorted(stems())})


def _covers(read: Iterable[str], key: str) -> bool:
    """Whether a stage that reads these sections and keys of params.yaml depends on `key`.

    A stage may read a part of what a key holds, such as `data.sets.sft` of `data.sets`.
    """
    return any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in read)


class PointKeys:
    """Makes the keys of points. The code and the user's own files are read once for all points."""

    def __init__(self) -> None:
        self._code, self._listing = cache(code_digest), cache(lambda path: listing_digest(own_path(path)))

    def key(self, values: Mapping[str, Any], only: tuple[str, ...] | None) -> str:
        """The key of a point: hex digits that change with its params, its stages, their code, or the user's files."""
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

"""A sweep is data: `sweeps/<name>.yaml` names what differs between its runs, and here it is read and checked."""

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from tasks.params.reading import read_yaml
from tasks.system.errors import UserError

SWEEPS = Path("sweeps")
LEAST_MINUTES = 5  # of a job: some of them are for saving what it is at when its time is up
LEAST_LOST_SECONDS = 5  # of silence: a busy machine is not a dead one
Score = Literal["one_picture", "best_of"]


@dataclass(frozen=True)
class Cluster:
    """What a run asks of Slurm or of a work pool; None leaves it to the cluster's own default.

    Slurm alone has `minutes` and `partition`. `pool` is the work pool; a run in one that has not been heard of for
    `lost_seconds` is given up. With `clone` its hosts share no folder with this one: each run has a clone of the
    project's git repository, and its data out of DVC's default remote.
    """

    gpus: int = 1
    cpus: int = 4
    memory: str | None = None
    minutes: int | None = None
    partition: str | None = None
    pool: str | None = None
    lost_seconds: int = 120
    clone: bool = False


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file tells it.

    `settings` are the values by dotted key of each run, without its seed; no `seeds` means that of params.yaml.
    `first` is the first stage that differs. A point runs the stages `until` and what they read; without them, all.
    `models` are patterns of the models that become rows of the table, and
    `score` is GenEval of one picture or of the best of as many as there are. `title` names the sweep's results and its
    runs: the name, and the profile if that is not the file's own.
    """

    name: str
    profile: str | None
    first: str
    settings: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...] = ()
    models: tuple[str, ...] = ("*",)
    score: Score = "one_picture"
    cluster: Cluster = field(default_factory=Cluster)
    until: tuple[str, ...] = ()
    own_profile: bool = True

    @property
    def title(self) -> str:
        return self.name if self.own_profile else f"{self.name}@{self.profile}"


KEYS = ("profile", "from", "until", "grid", "points", "seeds", "models", "score", "cluster", "profiles")
EXAMPLES = {"models": "finetuned-*", "until": "geneval@grown"}


def read_sweep(project: Path, name: str, profile: str | None = None) -> Sweep:
    """The sweep `sweeps/<name>.yaml`, for a profile other than its own if one is given.

    What the file holds under `profiles: {<profile>: ...}` replaces the same keys for that profile. Raises UserError.
    """
    path = project / SWEEPS / f"{name}.yaml"
    where = str(SWEEPS / f"{name}.yaml")
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in (project / SWEEPS).glob("*.yaml")))
        raise UserError(f"sweep {name!r} is unknown: {SWEEPS} has {known}")
    values = read_yaml(path)
    _known(values, KEYS, where)
    own = values.get("profile")
    profile = profile if profile is not None else own
    special = values.get("profiles") or {}
    _must(isinstance(special, dict), f"{where}: profiles is {special!r}: it must be a mapping")
    for one, replaced in special.items():
        _must(isinstance(replaced, dict), f"{where}: profiles.{one} is {replaced!r}: it must be a mapping")
        _known(replaced, KEYS[1:-1], f"{where}: profiles.{one}")
    values |= special.get(profile, {})
    _must(isinstance(values.get("from"), str), f"{where}: from is missing: name the first stage that differs")
    return Sweep(
        name=name,
        profile=profile,
        first=values["from"],
        settings=_settings(values, where),
        seeds=_seeds(values.get("seeds", []), where),
        models=_names("models", values.get("models", ["*"]), where),
        score=_score(values.get("score", "one_picture"), where),
        cluster=_cluster(values.get("cluster") or {}, where),
        until=_names("until", values["until"], where) if "until" in values else (),
        own_profile=profile == own,
    )


def _settings(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    """Every combination of a grid's values, or the points as they are listed; each once."""
    grid, points = values.get("grid"), values.get("points")
    _must((grid is None) != (points is None), f"{where}: name either a grid or points")
    if points is not None:
        whole = isinstance(points, list) and points and all(isinstance(point, dict) and point for point in points)
        _must(bool(whole), f"{where}: points is {points!r}: it must be a list of mappings")
        settings = points
    else:
        _must(isinstance(grid, dict) and bool(grid), f"{where}: grid is {grid!r}: it must be a mapping")
        for key, listed in grid.items():
            _must(isinstance(listed, list) and bool(listed), f"{where}: grid.{key} is {listed!r}: it must be a list")
        settings = [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    for number, setting in enumerate(settings):
        _must("compute.seed" not in setting, f"{where}: compute.seed is no value of the grid: name seeds")
        _must(setting not in settings[:number], f"{where}: {setting} is there twice")
    return tuple(settings)


def _seeds(seeds: Any, where: str) -> tuple[int, ...]:
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds) and len(set(seeds)) == len(seeds)
    _must(whole, f"{where}: seeds is {seeds!r}: it must be a list of different whole numbers")
    return tuple(seeds)


def _names(key: str, names: Any, where: str) -> tuple[str, ...]:
    whole = isinstance(names, list) and bool(names) and all(isinstance(one, str) for one in names)
    _must(whole, f"{where}: {key} is {names!r}: it must be a list of names, such as {EXAMPLES[key]}")
    return tuple(names)


def _score(score: Any, where: str) -> Score:
    _must(score in get_args(Score), f"{where}: score is {score!r}: it must be one of {list(get_args(Score))}")
    return score


def _cluster(values: Any, where: str) -> Cluster:
    _must(isinstance(values, dict), f"{where}: cluster is {values!r}: it must be a mapping")
    _known(values, tuple(one.name for one in fields(Cluster)), f"{where}: cluster")
    for key, least in (("gpus", 0), ("cpus", 1), ("minutes", LEAST_MINUTES), ("lost_seconds", LEAST_LOST_SECONDS)):
        value = values.get(key, least)
        fine = (value is None and key == "minutes") or (type(value) is int and value >= least)
        _must(fine, f"{where}: cluster.{key} is {value!r}: it must be a whole number from {least} on")
    for key in ("memory", "partition", "pool"):
        value = values.get(key)
        _must(value is None or isinstance(value, str), f"{where}: cluster.{key} is {value!r}: it must be text or null")
    clone = values.get("clone", False)
    _must(type(clone) is bool, f"{where}: cluster.clone is {clone!r}: it must be true or false")
    return Cluster(**values)


def _known(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise UserError(f"{where}: unknown key {key!r}: did you mean {nearest!r}?")


def _must(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)

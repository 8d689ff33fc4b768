"""A sweep is data: `sweeps/<name>.yaml` names what differs between its points, and here it is read and checked."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tasks.params.checks import check
from tasks.params.params_files import read_yaml
from tasks.params.typed_values import build
from tasks.system.errors import UserError

SWEEPS = Path("sweeps")
LEAST_MINUTES = 5
"""A job needs some of its minutes to save its checkpoint when its time is up."""
LEAST_LOST_SECONDS = 5
"""A busy machine is silent for a few seconds without being dead."""
Score = Literal["one_picture", "best_of"]


@dataclass(frozen=True)
class Cluster:
    """What a point asks of Slurm or of a work pool; None leaves it to the cluster's own default."""

    gpus: int = 1
    """Number of GPUs, 0 or above."""
    cpus: int = 4
    """Number of CPUs, 1 or above."""
    memory: str | None = None
    """Memory in the cluster's own spelling, such as 64G."""
    minutes: int | None = None
    """Time limit of a job in minutes (Slurm only)."""
    partition: str | None = None
    """Partition of the job (Slurm only)."""
    pool: str | None = None
    """Name of the work pool."""
    lost_seconds: int = 120
    """Seconds of silence after which a point in a work pool is given up."""
    clone: bool = False
    """Whether the work pool's hosts share no folder with this one.

    Each point then has a clone of the project's git repository, and takes its data out of DVC's default remote.
    """


@dataclass(frozen=True)
class SweepKeys:
    """What a sweep's file may hold, and for a profile under `profiles` as well. A key that is null is left out."""

    from_: str | None = None
    """First stage that differs between points; the key is `from`."""
    until: tuple[str, ...] | None = None
    """Stages that a point ends with, such as prune@6, or prune for all of its items.

    A point runs these and what they read. Without this key it runs all stages.
    """
    grid: dict[str, tuple[Any, ...]] | None = None
    """Values by dotted key; every combination is a setting."""
    points: tuple[dict[str, Any], ...] | None = None
    """Settings one by one, each with its values by dotted key.

    A sweep has either these or a grid, or neither if it has seeds: its one setting is then that of params.yaml.
    """
    seeds: tuple[int, ...] | None = None
    """Seeds that every setting is run with; without this key it is the seed of params.yaml."""
    models: tuple[str, ...] | None = None
    """Patterns of the models that become rows of the table, such as finetuned-*."""
    score: Score | None = None
    """The score of one picture (one_picture), or of the best of as many as there are (best_of)."""
    cluster: Cluster | None = None
    """What a point asks of Slurm or of a work pool."""

    def __post_init__(self) -> None:
        for name in ("until", "models", "grid", "points"):
            value = getattr(self, name)
            check(value is None or len(value) > 0, f"{name} is {value!r}: it is empty; leave the key out")
        for key, values in (self.grid or {}).items():
            check(len(values) > 0, f"grid.{key} is {list(values)}: it must be a list of at least one value")
        check(all(self.points or ()), f"points is {self.points!r}: each must set at least one key")
        seeds = self.seeds or ()
        check(len(set(seeds)) == len(seeds), f"seeds is {list(seeds)}: it must be a list of different whole numbers")
        least = {"gpus": 0, "cpus": 1, "minutes": LEAST_MINUTES, "lost_seconds": LEAST_LOST_SECONDS}
        for key, lowest in least.items() if self.cluster else ():
            number = getattr(self.cluster, key)
            fine = number is None or number >= lowest
            check(fine, f"cluster.{key} is {number}: it must be a whole number from {lowest} on")


@dataclass(frozen=True)
class SweepFile(SweepKeys):
    """All that a sweep's file may hold."""

    profile: str | None = None
    """Profile that the points' params start from; without this key they start from params.yaml alone."""
    profiles: dict[str, SweepKeys] | None = None
    """Keys that are replaced when the sweep is run for another profile, by the profile's name."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is run: its file, with the keys of the chosen profile laid over it.

    `settings` are the values by dotted key of each setting, without its seed. `first` is the first stage that differs.
    The other fields are explained in `SweepKeys`. `own_profile` says whether the profile is the file's own.
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
        """The name of the sweep's results and runs: its own, and the profile's if that is not the file's own."""
        return self.name if self.own_profile else f"{self.name}@{self.profile}"


def sweep_run_tag(title: str) -> str:
    """The tag in Prefect of a sweep's flow run and of the runs of its points. A click on it lists them all."""
    return f"sweep {title}"


def read_sweep(project: Path, name: str, profile: str | None = None) -> Sweep:
    """The sweep `sweeps/<name>.yaml`, for a profile other than its own if one is given.

    What the file holds under `profiles: {<profile>: ...}` replaces the same keys for that profile. Raises UserError.
    """
    path = project / SWEEPS / f"{name}.yaml"
    where = str(SWEEPS / f"{name}.yaml")
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in (project / SWEEPS).glob("*.yaml")))
        raise UserError(f"sweep {name!r} is unknown: {SWEEPS} has {known}")
    file = build(SweepFile, read_yaml(path), where)
    profile = profile if profile is not None else file.profile
    given = _given(file) | _given((file.profiles or {}).get(profile, SweepKeys()))
    if "from_" not in given:
        raise UserError(f"{where}: from is missing: name the first stage that differs")
    grid, points = given.pop("grid", None), given.pop("points", None)
    return Sweep(
        name=name,
        profile=profile,
        first=given.pop("from_"),
        settings=_settings(grid, points, where) if grid or points or "seeds" not in given else ({},),
        own_profile=profile == file.profile,
        **given,
    )


def _given(keys: SweepKeys) -> dict[str, Any]:
    """The keys that are there, of those that a profile may replace."""
    every = {one.name: getattr(keys, one.name) for one in fields(SweepKeys)}
    return {name: value for name, value in every.items() if value is not None}


def _settings(
    grid: Mapping[str, tuple[Any, ...]] | None, points: tuple[Mapping[str, Any], ...] | None, where: str
) -> tuple[Mapping[str, Any], ...]:
    """Every combination of a grid's values, or the points as they are listed.

    Raises UserError if there are both or neither, if a setting is there twice, or if it sets the seed.
    """
    if (grid is None) == (points is None):
        raise UserError(f"{where}: name either a grid or points, or seeds alone")
    settings = points
    if grid is not None:
        settings = tuple(dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values()))
    for number, setting in enumerate(settings):
        if "compute.seed" in setting:
            raise UserError(f"{where}: compute.seed is no value of the grid: name seeds")
        if setting in settings[:number]:
            raise UserError(f"{where}: {setting} is there twice")
    return settings

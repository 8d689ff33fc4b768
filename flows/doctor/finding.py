"""What a look at the workspace has found, and the workspaces to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.building.locks_of_runs import WORKSPACES


@dataclass(frozen=True)
class Finding:
    """One line. It says what is wrong and what to do, or, if not `wrong`, how things are."""

    line: str
    wrong: bool = True


def fine(line: str) -> Finding:
    """A line about something that is as it should be."""
    return Finding(line, wrong=False)


def workspaces(project: Path) -> Iterator[Path]:
    """The project, its copies for profiles and overrides, and the points of its sweeps."""
    yield project
    for pattern in WORKSPACES:
        # `runs/points` is the folder of the points and no workspace
        yield from (
            path for path in sorted(project.glob(pattern) if pattern else ()) if (path / "params.yaml").exists()
        )


def shown(path: Path, project: Path) -> str:
    """A path as a person at the project's folder would write it."""
    return str(path.relative_to(project)) if path.is_relative_to(project) else str(path)

"""Where a host that shares no folder with this one gets the project from: a git repository, a commit, a DVC remote."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dvc.config import Config

from tasks.errors import UserError

CODE = ("flows/", "tasks/", "model/", "kernels/", "dvc.yaml", ".dvc/config")
"""What a point runs out of its clone; its params come with the sweep."""


@dataclass(frozen=True)
class Origin:
    """A commit of a repository that other hosts can clone."""

    repository: str
    commit: str


def origin_of(project: Path) -> Origin:
    """The project's origin, which has the code as it is here.

    Raises UserError if there is none, if code here is not committed or its commit not pushed, or if DVC has no default
    remote outside the project.
    """
    why = "cluster.clone is true"
    commit, repository = _git(project, "rev-parse", "HEAD"), _git(project, "remote", "get-url", "origin")
    if not commit or not repository:
        raise UserError(f"{why}, but {project} is no git repository with a remote named origin to clone from")
    if urlsplit(repository).password:
        raise UserError(f"{why}, but the URL of origin holds a password, which Prefect would show: take it out")
    edited = f"{_git(project, 'diff', '--name-only', 'HEAD')}\n{_git(project, 'ls-files', '-o', '--exclude-standard')}"
    if names := sorted(name for name in edited.split("\n") if name.startswith(CODE)):
        raise UserError(f"{why}, and {', '.join(names)} is not committed: commit and push it, for others to clone it")
    if not _git(project, "branch", "--remotes", "--contains", commit):
        raise UserError(f"{why}, and commit {commit[:8]} is not in origin: git push")
    _refuse_own_remote(project, why)
    return Origin(repository, commit)


def _refuse_own_remote(project: Path, why: str) -> None:
    config = Config(str(project / ".dvc"), validate=True)
    name = config["core"].get("remote")
    url = config["remote"].get(name, {}).get("url")
    if url is None or Path(url).is_relative_to(project):
        found = "has no default remote" if url is None else f"keeps its remote {name} in the project"
        hint = "dvc remote add -d NAME URL, then commit and push .dvc/config"
        raise UserError(f"{why}, but DVC {found}, where no other host finds it: {hint}")


def _git(project: Path, *words: str) -> str:
    """What git says; nothing if it fails."""
    return subprocess.run(["git", *words], cwd=project, capture_output=True, text=True, check=False).stdout.strip()

"""The git repository and commit from which a host without the shared folder clones the project, and its DVC remote."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from dvc.config import Config, ConfigError

from tasks.system.errors import UserError

CODE_PATHS = ("flows/", "tasks/", "model/", "kernels/", "dvc.yaml", ".dvc/config")
"""The files that a point uses from its clone. Its params come with the sweep, so params.yaml is not among them."""


@dataclass(frozen=True)
class GitOrigin:
    """A commit of a repository that other hosts can clone."""

    repository: str
    commit: str


def read_git_origin(project: Path) -> GitOrigin:
    """The project's origin, and its commit that has the same code as the working tree.

    Raises UserError if there is no origin that other hosts can clone, if the code has edits that are not committed, if
    the commit is not pushed, or if DVC has no default remote that other hosts can find.
    """
    commit, repository = _git(project, "rev-parse", "HEAD"), _git(project, "config", "--get", "remote.origin.url")
    if not commit or not repository or _git(project, "rev-parse", "--show-toplevel") != str(project.resolve()):
        _refuse(f"{project} is no git repository with a remote named origin to clone from")
    url = urlsplit(repository)
    if url.password or url.query or (url.scheme in ("http", "https") and url.username):
        _refuse("the URL of origin holds a name, password or query, which Prefect would show: take it out")
    if not _is_absolute(repository):
        _refuse(f"the URL of origin, {repository}, is relative: no other host finds it")
    edited = f"{_git(project, 'diff', '--name-only', 'HEAD')}\n{_git(project, 'ls-files', '-o', '--exclude-standard')}"
    if names := sorted(name for name in edited.split("\n") if name.startswith(CODE_PATHS)):
        _refuse(f"{', '.join(names)} is not committed: commit and push it, for others to clone it")
    if not _git(project, "branch", "--remotes", "--list", "origin/*", "--contains", commit):
        _refuse(f"commit {commit[:8]} is not in origin: git push")
    _refuse_own_remote(project)
    return GitOrigin(repository, commit)


def _refuse_own_remote(project: Path) -> None:
    """Raise UserError unless `.dvc/config` names a default remote that other hosts can find.

    Only this file is committed. Settings in DVC's other files, of this host or this user, are missing in a clone.
    """
    hint = "dvc remote add -d NAME URL, then commit and push .dvc/config"
    try:
        config = Config.load_file(str(project / ".dvc" / "config"))
        merged = Config(str(project / ".dvc"))
    except (ConfigError, OSError) as error:
        _refuse(" ".join(str(error).split()))
    name = config.get("core", {}).get("remote")
    if (url := config.get("remote", {}).get(name, {}).get("url")) is None:
        _refuse(f".dvc/config has no default remote: {hint}")
    if (merged["core"].get("remote"), merged["remote"][name]["url"]) != (name, url) and _is_absolute(url):
        _refuse(f"DVC's remote is another one here than {name} of .dvc/config, which clones have: see dvc config -l")
    if not _is_absolute(url):
        _refuse(f"DVC's remote {name} is a path relative to the project, where no other host finds it: {hint}")


def _is_absolute(url: str) -> bool:
    """Whether the address is a URL, `host:path`, or an absolute path, and so means the same on every host."""
    return ":" in url or Path(url).is_absolute()


def _refuse(reason: str) -> NoReturn:
    raise UserError(f"cluster.clone is true, but {reason}")


def _git(project: Path, *words: str) -> str:
    """What git prints. Empty if git fails."""
    return subprocess.run(["git", *words], cwd=project, capture_output=True, text=True, check=False).stdout.strip()

"""The git commit that a folder's code belongs to. A folder that git does not know has none."""

import shutil
import subprocess
from pathlib import Path


def git_commit(folder: Path) -> str | None:
    """The hash of the commit that is checked out in or around `folder`, or None without git or a commit."""
    return _git(folder, "rev-parse", "HEAD")


def has_uncommitted_edits(folder: Path) -> bool:
    """Whether a file that git tracks in the repository around `folder` differs from the commit."""
    return bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    git = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return git.stdout.strip() if git.returncode == 0 else None

"""Published model folders, which stages take over unchanged instead of training a model of their own."""

import shutil
from collections.abc import Sequence
from pathlib import Path


def copy_files(source: Path, out: Path, patterns: Sequence[str]) -> None:
    """Copy the files at the top of `source` that match a pattern, following links: a download cache is made of them."""
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, out / path.name)

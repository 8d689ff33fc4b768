"""Takes damaged objects out of DVC's cache. DVC trusts what lies there, and would put a damaged file in place.

An object's name is the MD5 of its bytes, so that an object tells by itself whether it is damaged. DVC does not look,
since it has made the object read-only.
"""

import re
from collections.abc import Collection
from pathlib import Path

from dvc.repo import Repo
from dvc_data.hashfile.hash import file_md5

OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
"""The name of an object's file: its MD5 without the first two digits, which name its folder."""
DIRECTORY = ".dir"
"""How the name of an object ends that lists the files of a folder."""


def remove_damaged_objects(repo: Repo, sizes: Collection[int]) -> list[Path]:
    """Delete the damaged objects of DVC's cache that list a folder or have one of these sizes; returns their paths.

    A damaged file that was copied out of the cache has the size of its object. So no other object need be read.
    """
    damaged = [path for path in Path(repo.cache.local.path).glob("??/*") if _is_suspect(path, sizes) and _differs(path)]
    for path in damaged:
        path.unlink(missing_ok=True)
    return damaged


def _is_suspect(path: Path, sizes: Collection[int]) -> bool:
    if OBJECT.fullmatch(path.name) is None:
        return False
    return path.name.endswith(DIRECTORY) or path.stat().st_size in sizes


def _differs(path: Path) -> bool:
    return file_md5(str(path)) != path.parent.name + path.name.removesuffix(DIRECTORY)

"""Takes damaged objects out of DVC's cache. DVC trusts what lies there, and would put a damaged file in place.

An object's name is the MD5 of its bytes, so that an object tells by itself whether it is damaged. DVC does not look,
since it has made the object read-only.
"""

import re
from collections.abc import Collection
from pathlib import Path

from dvc.repo import Repo
from dvc.stage import Stage as DvcStage
from dvc_data.hashfile.hash import file_md5
from dvc_data.hashfile.tree import Tree

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


def remove_damaged_copies(stage: DvcStage) -> None:
    """Delete the objects that have the names of what the stage has just made, and other bytes.

    DVC would not write them anew, and may put them in place of what the stage has made. Call this when the stage is
    saved. It reads only what the stage has made before, byte by byte the same.
    """
    for out in stage.outs:
        if out.use_cache and out.obj is not None:
            within = [hash_info.value for _, _, hash_info in out.obj] if isinstance(out.obj, Tree) else []
            for oid in (*within, out.obj.oid):
                path = Path(out.cache.oid_to_path(oid))
                if path.exists() and _differs(path):
                    path.unlink()


def _is_suspect(path: Path, sizes: Collection[int]) -> bool:
    if OBJECT.fullmatch(path.name) is None:
        return False
    return path.name.endswith(DIRECTORY) or path.stat().st_size in sizes


def _differs(path: Path) -> bool:
    return file_md5(str(path)) != path.parent.name + path.name.removesuffix(DIRECTORY)

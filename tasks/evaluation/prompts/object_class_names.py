"""The 80 classes of COCO under the names of GenEval's prompts. Their order is COCO's: the detector's labels by index.

`published/object_names.txt` is GenEval's file, unchanged (MIT; its notice lies beside it in `published/LICENSE`).
"""

from functools import cache
from pathlib import Path

OBJECT_NAMES = Path(__file__).parent / "published" / "object_names.txt"


@cache
def class_names() -> tuple[str, ...]:
    """GenEval's name of each label, 0 to 79."""
    return tuple(OBJECT_NAMES.read_text(encoding="utf-8").splitlines())

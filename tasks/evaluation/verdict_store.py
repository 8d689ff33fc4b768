"""Verdicts on disk, by digest. They let the scoring of a folder be stopped at any time and repeated at little cost.

The file holds JSON lines, which are written one batch at a time. A last line that a crash has cut off is ignored.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Row = dict[str, Any]


class VerdictStore:
    """Lines of results by key. Use it in a `with` block, which closes the file at its end."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = dict(_read(path))
        self._file = open(path, "a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # ends the line that was cut off

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Row:
        return self._rows[key]

    def add(self, rows: Mapping[str, Row]) -> None:
        """Keep some rows. They are on disk when this returns."""
        self._file.writelines(json.dumps({"key": key, "row": row}) + "\n" for key, row in rows.items())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows |= rows


def _read(path: Path) -> list[tuple[str, Row]]:
    """The keys and rows of the lines of a file that are whole."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            kept = json.loads(text)
            key, row = kept["key"], kept["row"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(key, str) and isinstance(row, dict):
            found.append((key, row))
    return found

"""The rejects of a run: pictures that cannot be used. They are counted, named in a file, and held below a limit."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from tasks.system.errors import UserError
from tasks.system.files import write_bytes

NAMED_REJECTS = 3
"""Rejects that the error message names; the file names all."""


@dataclass
class Rejects:
    """The rejects found so far, as pairs (picture, reason), and the total number of pictures.

    `left_out` counts the pictures that a limit of params leaves out, which are no rejects.
    """

    total: int
    found: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0

    def add(self, where: str, reason: str) -> None:
        """Note a rejected picture, with the reason on one line."""
        self.found.append((where, " ".join(reason.split())))

    def write(self, path: Path) -> None:
        """Write one JSON line for each reject, sorted by picture."""
        lines = [json.dumps({"file": where, "reason": reason}) for where, reason in sorted(self.found)]
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())

    def check(self, limit: float, path: Path) -> None:
        """Raise UserError if more than the share `limit` was rejected. The message names `path`, which lists all."""
        share = len(self.found) / max(self.total, 1)
        if share <= limit:
            return
        first = "; ".join(f"{where} ({reason})" for where, reason in sorted(self.found)[:NAMED_REJECTS])
        more = "; ..." if len(self.found) > NAMED_REJECTS else ""
        raise UserError(
            f"{len(self.found)} of {self.total} pictures rejected, {share:.1%} where shard.max_reject_share is "
            f"{limit:.1%}: {first}{more}: mend or remove those listed in {path}, or raise the share"
        )

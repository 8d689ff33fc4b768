"""The answers that a vision-language judge has given, kept on disk, so that no question is asked twice.

They are in one SQLite file. Its journal keeps it whole when a process is killed, and its lock lets the stages of
parallel branches share it. The answers of a batch are written together or not at all. So a resumed run forms the same
batches as a run that was never stopped, and gets the same numbers.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from tasks.system.errors import UserError

Key = tuple[str, str, str]
"""The digest of the picture, the question, and the digest of the judge."""

Answer = tuple[float, float]
"""log P(yes) and log P(no)."""

PATIENCE = 60.0
"""Seconds to wait while another process writes."""

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    picture TEXT, question TEXT, judge TEXT, log_yes REAL NOT NULL, log_no REAL NOT NULL,
    PRIMARY KEY (picture, question, judge)
) WITHOUT ROWID
"""
_READ = "SELECT log_yes, log_no FROM answers WHERE picture = ? AND question = ? AND judge = ?"
_WRITE = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)"


class ScoreCache:
    """The answers in the SQLite file `path`. The file is created when the first answer is looked up.

    Each call opens the file anew, so an object of this class may be used after a fork and by any thread. Raises
    UserError naming the file if it is not one of ours or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def get(self, keys: Sequence[Key]) -> list[Answer | None]:
        """The answer to each key, or None where the file has none."""
        with self._open() as database:
            return [database.execute(_READ, key).fetchone() for key in keys]

    def put(self, answers: Iterable[tuple[Key, Answer]]) -> None:
        """Add answers. If this is interrupted, none of them is added."""
        rows = [(*key, *answer) for key, answer in answers]
        with self._open() as database, database:  # the second is the transaction
            database.executemany(_WRITE, rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as database:
                database.execute(_TABLE)
                yield database
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be used ({error}): delete it to judge all pictures anew") from None

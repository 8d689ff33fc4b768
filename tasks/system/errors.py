"""Errors that a user is meant to read. Their single line says what is wrong, where, and what to do."""

import unicodedata

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates, and separators of lines and paragraphs."""


class UserError(Exception):
    """Bad input or configuration. The stage wrapper prints its message without a traceback and exits with 2.

    Messages quote names and values out of files, which may hold anything. Characters that would end the line, steer a
    terminal or stop a log are shown as Python's escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    if unicodedata.category(character) not in UNPRINTABLE:
        return character
    return character.encode("unicode_escape").decode()


class WorkerDied(Exception):
    """A process that reads data for a stage is gone, whatever the input. The stage prints the line and exits with 1."""

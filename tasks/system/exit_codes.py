"""How a command ends that could not do its work: one line for a person, and an exit code for a script."""

import sys

BAD_INPUT = 2
"""The exit code of a process that was given what it cannot use, after one line that says so."""

FAILED = 1
"""The exit code of a process that could not do its work for another reason."""


def complain(message: object, code: int) -> int:
    """Print one line to the standard error, and return the exit code."""
    print(f"sana15: {message}", file=sys.stderr)
    return code

"""Checks that the sections of params.yaml make of their own values.

Each check raises ValueError with a message that names the key, its value and what it must be.
`tasks.params.params_files` turns it into a UserError that names the file and the section too.
"""

from typing import Any


def check(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def positive(section: Any, *names: str) -> None:
    """Raise ValueError for the first of these fields that is not above 0."""
    for name in names:
        value = getattr(section, name)
        check(value > 0, f"{name} is {value}: it must be above 0")


def or_list(names: tuple[str, ...]) -> str:
    """The names as they read in a sentence: `came8bit or came`."""
    return " or ".join(names)


def divides(section: Any, whole: str, divisor: str) -> None:
    """Raise ValueError if the field `whole` is no multiple of the field `divisor`."""
    a, b = getattr(section, whole), getattr(section, divisor)
    check(a % b == 0, f"{whole} is {a}: it must be a multiple of {divisor} {b}")

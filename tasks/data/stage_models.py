"""Models that a stage reads from the outputs of other stages: one that cannot be used ends the stage with one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.system.errors import UserError


@contextmanager
def loading_models() -> Iterator[None]:
    """Turn the ValueError with which a model refuses to load in the `with` block into a UserError of one line.

    `model` raises ValueError for a folder that lacks files, does not fit, or holds a weight that is not finite.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None

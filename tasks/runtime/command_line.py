"""The parser that all commands of `tasks` use, and their exit on bad input."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m tasks.<name>` whose help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m tasks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


@contextmanager
def bad_input_exits(name: str) -> Iterator[None]:
    """A UserError in the `with` block ends the process: its line is printed, and the exit code is 2.

    A Ctrl-C ends it without a traceback, with the exit code that shells give for it.
    """
    try:
        yield
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)

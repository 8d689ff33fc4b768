"""The parser that all commands of `tasks` use, and their exit on bad input."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.system.error_lines import line_of
from tasks.system.errors import UserError
from tasks.system.exit_codes import BAD_INPUT, FAILED


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m tasks.<name>` whose help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m tasks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


@contextmanager
def bad_input_exits(name: str) -> Iterator[None]:
    """A UserError in the `with` block ends the process: its line is printed, and the exit code is 2.

    What the system or a library throws, such as a full disk, ends it with a line and exit code 1, since the same input
    may do later. A Ctrl-C ends it without a traceback, with the exit code that shells give for it.
    """
    try:
        yield
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if (line := line_of(error)) is None:
            raise
        print(f"{name}: {line}", file=sys.stderr)
        sys.exit(FAILED)

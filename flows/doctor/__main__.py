"""Looks over the workspace in the working directory and says in one line each what is wrong and what to do.

It looks at params, packages, disks, locks, processes, servers, databases, DVC's records, outputs, training states and
the GPU. It changes nothing, needs no server, and works where much is broken: a look that fails is a line too. Outputs
are compared with their manifests by their sizes, and with --thorough by all of their bytes. The exit code is 1 if
something is wrong, and 0 if not.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from flows.doctor.finding import Finding
from tasks.system.error_lines import line_of, show_known_errors_in_a_line
from tasks.system.errors import UserError
from tasks.system.exit_codes import FAILED
from tasks.system.loopback import pass_by_proxies

LOOKS = (
    "parameters",
    "packages",
    "disk_space",
    "held_locks",
    "left_processes",
    "server_answers",
    "databases",
    "dvc_records",
    "manifests",
    "gpu",
)
"""The modules of this folder that look, in the order of their lines."""
READS_ALL = "manifests"
"""The look that reads every byte with --thorough."""


def examine(project: Path, thorough: bool = False) -> Iterator[tuple[str, Finding]]:
    """Each finding with the name of the look that found it.

    A look is imported when its turn comes: where a package is broken, the others still look.
    """
    for name in LOOKS:
        title = name.replace("_", " ")
        try:
            look = import_module(f"flows.doctor.{name}").look
            look = partial(look, thorough=thorough) if name == READS_ALL else look
            for finding in look(project):
                yield title, finding
        except Exception as error:
            own = str(error) if isinstance(error, UserError) else line_of(error)
            reason = own or f"{type(error).__name__}: {error}"
            yield title, Finding(f"this look itself failed: {' '.join(reason.split())}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each finding, and return the exit code: 1 if something is wrong, 0 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--thorough", action="store_true", help="read every byte of outputs and training states")
    arguments = parser.parse_args(argv)
    show_known_errors_in_a_line()
    pass_by_proxies(os.environ)
    wrong = 0
    for title, finding in examine(Path.cwd(), arguments.thorough):
        wrong += finding.wrong
        print(f"{'WRONG' if finding.wrong else 'ok':5}  {title}: {finding.line}", flush=True)
    print("nothing is wrong" if not wrong else f"{wrong} wrong: the lines above say what to do", flush=True)
    return FAILED if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

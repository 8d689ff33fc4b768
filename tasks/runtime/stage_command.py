"""The command line of a stage: `python -m tasks.<stem>`. A family's stage takes its item too, such as `--depth 6`.

On bad input the command prints one line and exits with 2. It exits with 1 if a rank failed or hung, or a worker died,
and with 128 + the number of a signal that stopped it. A watcher kills it by SIGKILL if it hangs.
"""

import atexit
import gc
import sys
from collections.abc import Sequence

from tasks.params.experiment_params import Params
from tasks.params.params_files import load_params
from tasks.runtime.command_line import bad_input_exits, command_parser
from tasks.runtime.context import Interrupted, Metrics
from tasks.runtime.hang_watch import limits_of, watched_process
from tasks.runtime.launch_ranks import RankFailed
from tasks.runtime.stage_run import has_ranks, run_stage
from tasks.stages import Argument, Stage, exists_once, families, stage_of
from tasks.system import paths
from tasks.system.errors import WorkerDied
from tasks.system.processes import exit_on_term_or_with_parent


def stage_command(stem: str, doc: str | None, argv: Sequence[str] | None = None) -> None:
    """Run a stage as a command and exit; `doc` is its help, the docstring of its module."""
    item = parse_item(stem, doc, argv)
    leave_imported_objects_alone()
    exit_on_term_or_with_parent()
    name = stem if item is None else f"{stem}@{item}"
    try:
        with bad_input_exits(name):
            params = load_params()
            metrics = run_watched(stage_of(stem, params, item), params)
    except Interrupted as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(128 + error.signum)
    except (RankFailed, WorkerDied) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()), flush=True)


def run_watched(stage: Stage, params: Params) -> Metrics:
    """Run a stage, and have it watched for as long as it takes. Where it has ranks, they are watched alone."""
    if has_ranks(stage, params):
        return run_stage(stage, params)
    with watched_process(stage.name, paths.hang_stacks(stage.name), limits_of(params.compute.compile)):
        return run_stage(stage, params)


def parse_item(stem: str, doc: str | None, argv: Sequence[str] | None) -> Argument | None:
    """The item on the command line of a family's stage; None for a stage that exists once, or without an item."""
    parser = command_parser(stem, doc)
    found = families(stem)
    if found:
        sources = " or ".join(dict.fromkeys(family.source for family in found))
        parser.add_argument(
            f"--{found[0].argument}", type=found[0].kind, required=not exists_once(stem), help=f"one of {sources}"
        )
    arguments = vars(parser.parse_args(argv))
    return arguments[found[0].argument] if found else None


def leave_imported_objects_alone() -> None:
    """Keep Python's garbage collector from looking through the objects of torch, transformers and diffusers.

    These libraries make a million objects that stay. To look through them as often as Python usually does, and once
    more at the end, takes a third of a short stage's time.
    """
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)

"""Writes `dvc.yaml` from the table of stages, `tasks/stages.py`, and the imports of their modules.

python -m flows.dvc_yaml           # write it, as make dvc.yaml does
python -m flows.dvc_yaml --check   # exit 1 if it is not what would be written
"""

import argparse
import sys
from collections.abc import Sequence

from flows.building.dvc_yaml_text import FILE, dvc_yaml, refuse_stale_file
from tasks.system.errors import UserError
from tasks.system.exit_codes import complain


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file or check it, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.dvc_yaml", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is stale")
    if not parser.parse_args(argv).check:
        FILE.write_text(dvc_yaml(), encoding="utf-8")
        return 0
    try:
        refuse_stale_file()
    except UserError as error:
        return complain(error, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

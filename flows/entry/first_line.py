"""Prints a line when a person starts a flow, before the libraries are imported, which takes seconds.

Importing this module prints it. `flows.entry.prefect_environment` imports it, which every flow imports first.
"""

import sys

STARTED_BY_HAND = ("flows.full_pipeline", "flows.sweep")

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2] in STARTED_BY_HAND and not {"-h", "--help"} & {*sys.argv}:
    print("sana15: starting", file=sys.stderr, flush=True)

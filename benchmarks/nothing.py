"""A point that does nothing: a process that leaves an outcome, or (NOTHING=flow) runs the pipeline over no stage first.

`sweep_overhead.py` puts it into its project, so that it is copied into each point's folder as the rest of the code is.
"""

import json
import os
from pathlib import Path

BEGUN = "begun.txt"


def leave_outcome(folder: Path) -> None:
    """Note that the point was begun, and write an outcome with a score and a size of its own."""
    with open(folder.parents[2] / BEGUN, "a", encoding="utf-8") as file:
        file.write(f"{folder.name}\n")
    first, second = int(folder.name[:6], 16), int(folder.name[6:12], 16)
    score = {"overall": first / 16**6, "low": 0.0, "high": 1.0}
    model = {
        "name": "grown",
        "depth": 1,
        "parameters": second,
        "heldout_loss": 1.0,
        "scorer": "geneval",
        "score": score,
    }
    outcome = {"reason": "", "seconds": 0.0, "models": [model | {"seconds_per_picture": second / 16**6}]}
    records = folder / ".sana15" / "point"
    records.mkdir(parents=True, exist_ok=True)
    (records / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    if os.environ["NOTHING"] == "flow":
        from flows.full_pipeline import full_pipeline

        full_pipeline(only=[])
    leave_outcome(Path.cwd())

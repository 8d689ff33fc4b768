"""What the head of the report names: the pictures, the scorer, the profile, the commit, and the date.

A report may be forwarded without a word. Its head therefore says what the scores are of and what scored them.
"""

from datetime import UTC, datetime
from pathlib import Path

from tasks.evaluation.scorer_labels import SCORER_MEANINGS
from tasks.params.experiment_params import Params
from tasks.params.picture_params import Shard
from tasks.reporting.report_numbers import Record
from tasks.reporting.score_names import full_name, score_name
from tasks.system import paths
from tasks.system.files import read_json
from tasks.system.git_commit import git_commit, has_uncommitted_edits


def report_origin(params: Params) -> Record:
    """The words of the report's head, for the workspace that is the working directory."""
    scored_by = params.scorer, params.geneval.detector
    return {
        "pictures": pictures_in_words(params.shard),
        "subject": subject(params.shard),
        "score_name": score_name(*scored_by),
        "scorer": full_name(*scored_by),
        "meaning": SCORER_MEANINGS[params.scorer],
        "settings": settings(),
        "commit": commit_in_words(Path.cwd()),
        "date": today(),
    }


def subject(shard: Shard) -> str:
    """What the models draw, for the page's title."""
    return "rendered scenes" if shard.source == "scenes" else f"the pictures in {shard.path}"


def pictures_in_words(shard: Shard) -> str:
    """The source of the pictures and how many of them are in use.

    Only the stage that packs the user's own pictures knows how many are usable. The counts are left out where its
    output is not in this workspace.
    """
    if shard.source == "scenes":
        counts = {"train_samples": shard.train_samples, "heldout_samples": shard.heldout_samples}
        source = "rendered scenes of coloured shapes"
    else:
        record = paths.SHARDS / "metrics.json"
        counts = read_json(record) if record.exists() else {}
        source = f"{shard.path} ({shard.source})"
    if not counts:
        return source
    train, heldout = int(counts["train_samples"]), int(counts["heldout_samples"])
    return f"{source}: {train + heldout:,} pictures, of which {heldout:,} are held out"


def settings() -> str:
    """The profile and the overrides that this workspace's params were made from."""
    if paths.PARAMS_ORIGIN.exists():
        return str(read_json(paths.PARAMS_ORIGIN)["origin"])
    return "default (params.yaml of the project)"


def commit_in_words(folder: Path) -> str | None:
    """The commit of the code, and whether files differ from it; None outside git."""
    commit = git_commit(folder)
    if commit is None:
        return None
    return commit[:12] + (", with uncommitted edits" if has_uncommitted_edits(folder) else "")


def today() -> str:
    """The date in UTC, as in 2026-11-27."""
    return datetime.now(UTC).date().isoformat()

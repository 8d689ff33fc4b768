"""Where the stages' outputs lie, relative to the workspace (the folder with `params.yaml`)."""

from collections.abc import Iterable
from pathlib import Path

OUTPUTS = Path("outputs")
SHARDS = OUTPUTS / "shards"
AUTOENCODER = OUTPUTS / "autoencoder"
TEXT_ENCODER = OUTPUTS / "text_encoder"
ENCODED = OUTPUTS / "encoded"
SMALL = OUTPUTS / "small"
START = SMALL / "start.json"
GROWN_INIT = OUTPUTS / "grown_init"
GROWN = OUTPUTS / "grown"
IMPORTANCE = OUTPUTS / "importance"
JUDGE = OUTPUTS / "judge"
GENEVAL = OUTPUTS / "geneval"
CONTROLS = OUTPUTS / "controls"
RANDOM_CUTS = CONTROLS / "random_cuts.safetensors"

RESULTS = Path("results")
STAGE_RECORDS = RESULTS / "stages"
STATE = Path(".sana15")
JUDGE_ANSWERS = STATE / "judge_answers.sqlite"


def model_folder(name: str) -> Path:
    """The checkpoint of a model by its name: `small`, `grown`, `pruned-D`, `finetuned-D`."""
    return OUTPUTS / name


def model_names(baselines: Iterable[str], depths: Iterable[int]) -> list[str]:
    """The names of all models that are scored: the baselines (`small`, `grown`) and those cut to these depths."""
    return [*baselines, *(f"{kind}-{depth}" for depth in depths for kind in ("pruned", "finetuned"))]

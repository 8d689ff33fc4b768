"""The places of all outputs and records, relative to the workspace (the folder with `params.yaml`)."""

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
SCORER = OUTPUTS / "scorer"
JUDGE = OUTPUTS / "judge"
JUDGE_EXAMPLES = OUTPUTS / "judge_examples"
JUDGE_FINETUNED = OUTPUTS / "judge_finetuned"
LATENCY = OUTPUTS / "latency"
EVALUATION = OUTPUTS / "evaluation"
CONTROLS = OUTPUTS / "controls"
RANDOM_CUTS = CONTROLS / "random_cuts.safetensors"

RESULTS = Path("results")
STAGE_RECORDS = RESULTS / "stages"
STATE = Path(".sana15")
COPIES = Path("runs")
"""The folder of a project whose subfolders are its copies for a profile or overrides."""
PARAMS_ORIGIN = STATE / "params_origin.json"
"""In a copy of the project: which profile and overrides its params were made from, in words."""
JUDGE_ANSWERS = STATE / "judge_answers.sqlite"


def hang_stacks(stage: str) -> Path:
    """The folder of the stacks of a stage's processes that hung, with a subfolder for each time."""
    return STATE / "hangs" / stage


def shards(data_set: str | None = None) -> Path:
    """The folder of pictures of a set in `data.sets`, or of the set of `shard` if the name is None."""
    return SHARDS if data_set is None else OUTPUTS / f"{SHARDS.name}-{data_set}"


def encoded(data_set: str | None = None) -> Path:
    """The folder of cached encodings of a set in `data.sets`, or of the set of `shard` if the name is None."""
    return ENCODED if data_set is None else OUTPUTS / f"{ENCODED.name}-{data_set}"


def model_folder(name: str) -> Path:
    """The checkpoint folder of a model, by its name: `small`, `grown`, `pruned-6`, `finetuned-6`, `sft-grown`."""
    return OUTPUTS / name


def main_project(folder: Path) -> Path:
    """The main project of a copy (`runs/<name>`, or one of DVC's temporary experiments), or `folder` itself.

    The main project is the outermost folder around `folder` that has `dvc.yaml` and `params.yaml`. Its copies share its
    MLflow store and its records.
    """
    folder = folder.resolve()
    around = [
        path for path in (folder, *folder.parents) if (path / "dvc.yaml").exists() and (path / "params.yaml").exists()
    ]
    return around[-1] if around else folder

"""The places of all outputs and records, relative to the workspace (the folder with `params.yaml`)."""

from pathlib import Path

from tasks.system.errors import UserError

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
BUILDING = ".building"
"""The folder within `outputs` or `results` where stages compute, if that lies on another disk than the state."""
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
    """The main project of a copy (below `runs/`, or one of DVC's temporary experiments below `.dvc/tmp/`).

    Of another folder it is the project that the folder lies in, or `folder` itself if that lies in none. A project has
    `dvc.yaml` and `params.yaml`. Copies share the MLflow store and the records of their main project. A project that
    somebody has put into another project of DVC stays its own main project.
    """
    folder = folder.resolve()
    projects = [around for around in (folder, *folder.parents) if _is_project(around)]
    main = projects[0] if projects else folder
    for around in projects[1:]:
        if main.is_relative_to(around / COPIES) or main.is_relative_to(around / ".dvc" / "tmp"):
            main = around
    return main


def _is_project(folder: Path) -> bool:
    return (folder / "dvc.yaml").exists() and (folder / "params.yaml").exists()


def refuse_question_mark(project: Path) -> None:
    """Raise UserError if the project's path has a question mark: in the address of an SQLite file its rest is lost.

    The databases of MLflow and Prefect would then lie outside the project.
    """
    if "?" in str(project):
        raise UserError(f"{project} has a question mark in its path, which no address of a database can: rename it")

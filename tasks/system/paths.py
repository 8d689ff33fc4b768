"""Where the stages' outputs lie, relative to the workspace (the folder with `params.yaml`)."""

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


def main_project(folder: Path) -> Path:
    """The project that `folder` is a copy in (`runs/<name>`, DVC's temporary experiments), or `folder` itself.

    It is the outermost folder around it that holds `dvc.yaml` and `params.yaml`, so that copies share one store.
    """
    folder = folder.resolve()
    around = [
        path for path in (folder, *folder.parents) if (path / "dvc.yaml").exists() and (path / "params.yaml").exists()
    ]
    return around[-1] if around else folder

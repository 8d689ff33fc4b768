"""What best of N needs from a judge, and which judge an experiment has.

The judge is either the small network that the stage `judge` trains, or a published vision-language model. For a
published model the stage's output holds a record: the model's path, the digest of its files, and how it is asked. So
the evaluation learns from the stage's output alone which judge to ask, and is stale when the judge changes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.text_encoder import TextEncoder
from tasks.data.published_files import content_digest, published_path
from tasks.evaluation.judges.judge_answers import ScoreCache
from tasks.evaluation.judges.judge_network import JudgeNetwork, load_judge, log_yes
from tasks.evaluation.judges.vision_language_judge import load_vision_language_judge
from tasks.params.evaluation_params import Judge as JudgeParams
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json, write_json
from tasks.system.paths import main_project

RECORD = "vision_language.json"


class Judge(Protocol):
    """Says how well pictures show what their prompts ask for."""

    def log_yes(self, pictures_PNHW3: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Scores (P, N): log P(yes) of the N pictures of each of P prompts, NaN where the judge abstains."""
        ...


@dataclass(frozen=True)
class TrainedJudge:
    """The small network, with the text encoder whose embeddings of the prompts it reads."""

    network: JudgeNetwork
    text_encoder: TextEncoder

    def log_yes(self, pictures_PNHW3: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Scores (P, N): log P(yes). This judge never abstains."""
        return log_yes(self.network, self.text_encoder, pictures_PNHW3, prompts)


@dataclass(frozen=True)
class Record:
    """A vision-language model as the judge: `path` as in params.yaml, the digest of its files, and how it is asked."""

    path: str
    digest: str
    remote_code: bool
    batch_size: int
    time_limit: float


def write_record(chosen: JudgeParams, folder: Path) -> None:
    """Write the record of the model at `judge.path` into an existing folder. Raises UserError if there is no model."""
    assert chosen.path is not None  # params refuse the kind vision_language without a path
    digest = content_digest(published_path(chosen.path))
    record = Record(chosen.path, digest, chosen.remote_code, chosen.batch_size, chosen.time_limit)
    write_json(folder / RECORD, asdict(record))


def open_judge(folder: Path, text_encoder: TextEncoder, dtype: str, device: str) -> Judge:
    """The judge in the output folder of the stage `judge`, whichever kind it is.

    Raises UserError if a file is missing or does not fit, or if the recorded model has changed since.
    """
    if not (folder / RECORD).exists():
        return TrainedJudge(load_judge(folder, device), text_encoder)
    record = Record(**read_json(folder / RECORD))
    model = published_path(record.path)
    if content_digest(model) != record.digest:
        raise UserError(f"{model} is not the judge that {folder / RECORD} names: run python -m tasks.judge")
    return load_vision_language_judge(
        model,
        cache=ScoreCache(main_project(Path.cwd()) / paths.JUDGE_ANSWERS),
        remote_code=record.remote_code,
        batch_size=record.batch_size,
        time_limit=record.time_limit,
        dtype=dtype,
        device=device,
    )

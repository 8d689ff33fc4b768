"""What a flow run shows in Prefect's UI: progress, a table of stages, a table of models, and the report's address."""

import flows.entry.prefect_environment  # noqa: F401

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.building.model_table import best_in_a_line, brief_rows
from flows.building.stage_builder import BuiltStage


@contextmanager
def best_effort(log: Callable[[str], None]) -> Iterator[None]:
    """Log an error of the block and go on: a slow server is no reason to fail stages that are built and recorded."""
    try:
        yield
    except Exception as error:
        log(f"Prefect's server did not take an artifact ({' '.join(str(error).split())[:120]})")


class StageProgress:
    """A progress artifact that counts finished stages. `advance` may be called from several threads."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._lock = total, 0, threading.Lock()
        self._artifact = create_progress_artifact(0.0, key="progress", description=f"0 of {total} stages")

    def advance(self) -> None:
        """Count one more finished stage."""
        with self._lock:
            self._done += 1
            description = f"{self._done} of {self._total} stages"
            update_progress_artifact(self._artifact, 100.0 * self._done / self._total, description=description)


def publish_stages(stages: Sequence[BuiltStage]) -> None:
    """Publish a table of stages: ran or cached, seconds, and the outputs with the first digits of their digests."""
    rows = [
        {
            "stage": stage.stage,
            "state": "cached" if stage.cached else "ran",
            "seconds": round(stage.seconds, 1),
            "outputs": ", ".join(f"{path} {digest[:12]}" for path, digest in stage.outputs.items()),
        }
        for stage in stages
    ]
    create_table_artifact(rows, key="stages", description="What ran and what was up to date")


def publish_models(summary: Mapping[str, Any]) -> None:
    """Publish a table of models, which fits a narrow window: score, best of the largest N, parameters and seconds.

    Its description says which model is best.
    """
    words = f"The family of models. {best_in_a_line(summary)}".rstrip()
    create_table_artifact(brief_rows(summary), key="models", description=words)


def publish_report(report: Path, address: str | None) -> None:
    """Publish where the report is: its path, and its `address` in MLflow's UI, if a server of MLflow has it.

    The address opens from other machines too. The path is plain text, since browsers open no file:// link on a page of
    a server.
    """
    link = f"[The report in MLflow]({address})\n\n" if address else ""
    create_markdown_artifact(f"{link}`{report}`", key="report", description="The report of this run")

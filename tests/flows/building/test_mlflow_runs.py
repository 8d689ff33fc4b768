"""How a flow run ends is how its run in MLflow ends."""

from pathlib import Path

import pytest

from flows.building.mlflow_runs import open_mlflow_runs
from tasks.tracking.mlflow_store import connect


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (RuntimeError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_the_run_of_a_flow_and_of_a_stage_that_it_left_end_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, status: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def work() -> None:
        with open_mlflow_runs(tmp_path, "a flow run", {"profile": "smoke"}) as lineage:
            lineage.begin_stage("train")
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    client, experiment = connect()
    ended = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert ended == {"sana15": status, "train": status}

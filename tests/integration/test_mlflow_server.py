"""A stage does not wait for an MLflow server that is down, and the server gets every row when it is up."""

import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.tracking.mlflow_store import connect
from tasks.tracking.report_spool import SPOOLS
from tasks.tracking.tracker import SPOOL_VARIABLE, open_tracker
from tests.helpers.mlflow_store import history, runs
from tests.helpers.other_account import free_port
from tests.helpers.patience import PATIENCE_SECONDS, wait_for

CREDENTIALS = ("sana15", "a password of a test")


@contextmanager
def mlflow_server(port: str, store: Path) -> Iterator[None]:
    """A real `mlflow server` on the store's database, which asks for a password as a shared one does."""
    users = f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{store / 'users.db'}\n"
    (store / "users.ini").write_text(users)
    user, password = CREDENTIALS
    own = {
        "MLFLOW_AUTH_CONFIG_PATH": str(store / "users.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of its forms",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += [
        "--app-name",
        "basic-auth",
        "--backend-store-uri",
        f"sqlite:///{store / 'mlflow.db'}",
        "--artifacts-destination",
        str(store / "a"),
    ]
    with (
        open(store / "server.log", "wb") as log,
        subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            health = f"http://127.0.0.1:{port}/health"
            wait_for(lambda: urllib.request.urlopen(health, timeout=PATIENCE_SECONDS).status == 200, "MLflow's server")
            yield
        finally:
            os.killpg(server.pid, 15)


def test_a_tracker_that_is_down_holds_up_no_row_and_gets_each_once_when_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow_database: Path
) -> None:
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SPOOL_VARIABLE, raising=False)
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    for name, value in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), CREDENTIALS, strict=True):
        monkeypatch.setenv(name, value)
    asked, over = threading.Event(), threading.Event()

    def waits_for_the_server() -> tuple[MlflowClient, str]:
        asked.set()
        assert over.wait(PATIENCE_SECONDS)
        return connect()

    with monkeypatch.context() as patch, open_tracker("pretrain") as tracker:
        patch.setattr("tasks.tracking.mlflow_sender.connect", waits_for_the_server)
        assert asked.wait(PATIENCE_SECONDS)
        for step in range(300):
            tracker.log_metrics({"loss": float(step)}, step)
        over.set()  # after all rows: none of them waited for the server
    assert list(SPOOLS.glob("*.pretrain.*.jsonl"))
    with mlflow_server(port, tmp_path):
        with open_tracker("grow"):
            pass
        (run,) = runs("pretrain")
        assert run.info.status == "FINISHED"
        assert history(run, "loss") == [(step, float(step)) for step in range(300)]
        assert len(runs("grow")) == 1
    assert not list(SPOOLS.iterdir())

"""The project's database of MLflow outlives a kill at any moment of its making, and damage to it is named."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tasks.system.errors import UserError
from tasks.system.paths import STATE
from tasks.tracking.mlflow_database import SET_ASIDE
from tasks.tracking.mlflow_sender import Sender
from tasks.tracking.mlflow_store import connect
from tasks.tracking.report_spool import SPOOLS, open_spool
from tests.helpers.mlflow_store import runs
from tests.helpers.patience import PATIENCE_SECONDS, wait_for

PROJECT = Path(__file__).parents[3]

# Connects to MLflow, and stands still behind the migration whose number is given.
STANDS_STILL = """
import sys, time
from pathlib import Path
from alembic.runtime.migration import HeadMaintainer

number, count = int(sys.argv[1]), 0
whole_update = HeadMaintainer.update_to_step

def update_to_step(self, step):
    global count
    whole_update(self, step)
    count += 1
    if count == number:
        Path("stands_still").touch()
        time.sleep(3600)

HeadMaintainer.update_to_step = update_to_step
from tasks.tracking.mlflow_store import connect
connect()
"""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def report(name: str) -> None:
    spool = open_spool(SPOOLS, name, {})
    with Sender(SPOOLS) as sender:
        sender.add(spool)
        spool.append("end", status="FINISHED")


@pytest.mark.parametrize("which", range(2))
def test_a_kill_while_the_database_is_made_keeps_no_later_report_from_it(workspace: Path, which: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    number = random.Random(seed).randint(1, 40)
    print(f"seed {seed}: killed after migration {number}")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-c", STANDS_STILL, str(number)], env=environment)
    try:
        wait_for(lambda: (workspace / "stands_still").exists() or process.poll() is not None, "a migration")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
    report("afterwards")
    assert [run.info.status for run in runs("afterwards")] == ["FINISHED"]
    assert not list((workspace / STATE).glob("mlflow.db.unfinished*"))


def test_a_database_that_an_earlier_version_left_half_made_gives_way_to_a_whole_one(
    workspace: Path, empty_mlflow_database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = workspace / "mlflow.db"
    half.write_bytes(empty_mlflow_database.read_bytes())
    with closing(sqlite3.connect(half)) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        database.execute("DROP TABLE trace_info")
        database.commit()
    left = half.read_bytes()
    report("afterwards")
    assert len(runs("afterwards")) == 1
    assert (workspace / STATE / SET_ASIDE).read_bytes() == left
    assert "mlflow.db was half made and held no run" in capfd.readouterr().err


def test_a_damaged_database_is_named_with_the_way_out_and_is_left_alone(
    workspace: Path, empty_mlflow_database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, whole = workspace / "mlflow.db", empty_mlflow_database.read_bytes()
    for damaged in (b"no database at all", whole[:4096] + os.urandom(len(whole) - 4096), whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"mlflow\.db is damaged \(.*\): move it away, .* sqlite3 mlflow\.db \.recover"
        ):
            connect()
        report("while it is damaged")
        said = capfd.readouterr().err
        assert "mlflow.db is damaged" in said and "move it away" in said and "reports wait in" in said
        assert path.read_bytes() == damaged
    path.unlink()
    report("afterwards")
    assert len(runs("afterwards")) == 1 and len(runs("while it is damaged")) == 3

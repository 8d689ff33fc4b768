"""SQLite on a network file system, which many hosts would write to, is refused before any work."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows.places import sqlite_on_network
from flows.places.sqlite_on_network import network_file_system, refuse_sqlite_over_network
from flows.sweep import open_place
from flows.sweeps.sweep_file import read_sweep
from tasks.system.errors import UserError
from tests.helpers.small_workspace import PROJECT


@pytest.fixture
def networked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of file system that the tests lie in, for once counted among those of a network."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sqlite_on_network, "NETWORK_FILE_SYSTEMS", ("",))
    kind = network_file_system(tmp_path)
    assert kind
    monkeypatch.setattr(sqlite_on_network, "NETWORK_FILE_SYSTEMS", (kind,))
    return kind


def test_a_disk_of_this_machine_is_no_network_file_system(tmp_path: Path) -> None:
    assert network_file_system(tmp_path) is None and network_file_system(Path("/proc/none")) is None


def test_a_folder_belongs_to_the_innermost_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {"/": "ext4", str(tmp_path): "nfs4", str(tmp_path / "scratch"): "xfs", f"{tmp_path}2": "lustre"}
    listed = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in mounts.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: listed)
    assert network_file_system(tmp_path / "project/mlflow.db") == "nfs4"
    assert network_file_system(tmp_path / "scratch/mlflow.db") is None
    assert network_file_system(Path("/var/mlflow.db")) is None


def test_one_line_names_the_file_and_what_to_set(
    networked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match=rf"where is slurm, and MLflow.* on {networked} .*MLFLOW_TRACKING_URI"):
        refuse_sqlite_over_network("slurm")
    plan = read_sweep(PROJECT, "prune-depth", "smoke")
    with pytest.raises(UserError, match="MLflow's store is SQLite"):
        open_place(PROJECT, plan, "work-pool", None, None, "any")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    refuse_sqlite_over_network("slurm")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path}/prefect.db")
    with pytest.raises(UserError, match=r"Prefect's database is SQLite .*prefect\.db.*PostgreSQL"):
        refuse_sqlite_over_network("work-pool")


def test_one_machine_keeps_sqlite_wherever_it_lies(networked: str) -> None:
    plan = read_sweep(PROJECT, "prune-depth", "smoke")
    assert open_place(PROJECT, plan, "local", 1, [], None).has_room()

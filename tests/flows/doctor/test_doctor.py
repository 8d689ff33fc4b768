"""The doctor names what is wrong with a workspace, each in one line with the way out, and changes nothing."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flows.doctor import __main__ as doctor
from flows.doctor import disk_space, packages
from flows.doctor.finding import Finding
from flows.entry.password import API_VARIABLE, credentials
from tasks.system.file_locks import exclusive_lock
from tasks.system.manifest import write_manifest
from tasks.system.processes import PARENT_VARIABLE
from tests.helpers.patience import PATIENCE_SECONDS, wait_for
from tests.helpers.small_disk import python_on_a_disk
from tests.helpers.small_workspace import PROJECT, write_params

# Takes a lock as a stage does, leaves it to a child that only waits, and is gone. The child says who it is.
LEAVES_A_CHILD = """
import os, sys, time
from pathlib import Path
from tasks.system.file_locks import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "it"):
    if os.fork() == 0:
        print(os.getppid(), os.getpid(), flush=True)
        time.sleep(3600)
    time.sleep(1)
    os._exit(0)
"""
ENDED = 2**22 - 1
"""The id of a process that is not there: the last of Linux's, which few machines reach."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing has run, as the working directory."""
    for name in ("params.yaml", "dvc.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(PROJECT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in (API_VARIABLE, "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def findings(look: str, thorough: bool = False) -> list[Finding]:
    """What a look finds in the working directory. Every line is one line."""
    found = [finding for title, finding in doctor.examine(Path.cwd(), thorough) if title == look.replace("_", " ")]
    assert found and all("\n" not in finding.line for finding in found)
    return found


@pytest.fixture(autouse=True)
def no_other_looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the look that a test's name begins with is taken, if it begins with one."""
    name = request.node.name.removeprefix("test_")
    looks = tuple(look for look in doctor.LOOKS if name.startswith(look))
    monkeypatch.setattr(doctor, "LOOKS", looks or doctor.LOOKS)


def wrong(look: str, thorough: bool = False) -> str:
    """The one line of a look that says what is wrong."""
    (line,) = [finding.line for finding in findings(look, thorough) if finding.wrong]
    return line


def all_well(look: str, thorough: bool = False) -> bool:
    return not any(finding.wrong for finding in findings(look, thorough))


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and the time of every file."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def output(root: Path, name: str) -> Path:
    """An output with a manifest."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "data.bin").write_bytes(b"0123456789")
    write_manifest(folder)
    return folder


def database(path: Path, version: str = "") -> None:
    """A database of SQLite, with the table that names its version if one is given."""
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("CREATE TABLE numbers (number INTEGER)")
        opened.executemany("INSERT INTO numbers VALUES (?)", [(number,) for number in range(5000)])
        if version:
            opened.execute("CREATE TABLE alembic_version (version_num TEXT)")
            opened.execute("INSERT INTO alembic_version VALUES (?)", [version])
        opened.commit()


def test_a_whole_workspace_gives_exit_code_0_a_broken_one_1_and_neither_is_changed(project: Path) -> None:
    output(project, "outputs/shards")
    database(project / "mlflow.db")
    for damaged, code in ((False, 0), (True, 1)):
        if damaged:
            (project / "params.yaml").write_bytes(b"\xff\x00")
            (project / ".dvc/config").write_text("[core")
            (project / "dvc.lock").write_text("- 1")
            (project / "mlflow.db").write_bytes(b"no database")
            (project / "outputs/shards/data.bin").unlink()
        before = snapshot(project)
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "flows.doctor"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        assert snapshot(project) == before
    lines = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    for name in ("params.yaml", ".dvc/config", "dvc.lock", "mlflow.db", "outputs/shards/data.bin"):
        assert [line for line in lines if f"{name} " in line or f"{name}:" in line], name


def test_a_look_that_fails_is_a_line_and_the_others_still_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOOKS", ("no_such_look", "parameters"))
    assert "this look itself failed: ModuleNotFoundError" in wrong("no_such_look")
    assert all_well("parameters")


def test_parameters_that_cannot_be_read_or_lead_nowhere_are_named(project: Path) -> None:
    write_params(project, {"judge.path": "models/missing"})
    assert "models/missing" in wrong("parameters")
    (project / "params.yaml").unlink()
    assert "params.yaml is missing: run from the folder" in wrong("parameters")


def test_packages_of_other_versions_than_pinned_and_missing_ones_are_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "PROJECT", project)
    settings = '[project]\nrequires-python = "{}"\ndependencies = ["psutil>=7", "no-such-package-here>=1"]\n'
    (project / "pyproject.toml").write_text(settings.format(">=3.11"))
    (project / "constraints.txt").write_text("psutil==0.0.1\nnot-installed==1.0\n")
    missing, others = findings("packages")
    assert missing == Finding("missing are no-such-package-here: run make setup")
    assert "psutil" in others.line and "(pinned 0.0.1)" in others.line and "not-installed" not in others.line
    (project / "pyproject.toml").write_text(settings.format(">=3.99"))
    assert "the code is for >=3.99" in findings("packages")[0].line


def test_disk_space_that_is_short_and_a_link_to_a_disk_that_is_gone_are_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all_well("disk_space")
    (project / "outputs").symlink_to("/no/such/disk")
    assert "outputs is a link to /no/such/disk, which is not there: mount it" == wrong("disk_space")
    (project / "outputs").unlink()
    monkeypatch.setattr(disk_space, "LEAST_BYTES", 2**62)
    assert all("are free: make room" in one.line for one in findings("disk_space"))


def test_disk_space_on_a_disk_that_takes_no_writes_is_named(project: Path) -> None:
    code = "from pathlib import Path; from flows.doctor.disk_space import look\nfor one in look(Path.cwd()): print(one)"
    done = python_on_a_disk(project, "size=4m then ro", "-c", code)
    assert "the project's folder takes no writes: its disk is mounted read-only" in done.stdout, done.stderr
    assert " MB are free: make room" in done.stdout


def test_held_locks_of_living_runs_are_as_they_should_be(project: Path) -> None:
    (project / ".sana15/locks").mkdir(parents=True)
    (project / ".sana15/locks/shard").write_text(str(ENDED))
    assert [one.line for one in findings("held_locks")] == ["no run, stage, sweep or point holds a lock"]
    with exclusive_lock(project / ".sana15/locks/train", "train"):
        (finding,) = findings("held_locks")
    assert not finding.wrong and f".sana15/locks/train is held by process {os.getpid()}" in finding.line


def test_held_locks_whose_process_is_gone_are_named_with_the_child_that_holds_them(project: Path) -> None:
    command = [sys.executable, "-c", LEAVES_A_CHILD, ".sana15/flow.lock"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        taker, child = map(int, parent.stdout.readline().split())
        parent.wait(PATIENCE_SECONDS)
        try:
            assert wrong("held_locks") == (
                f".sana15/flow.lock is held although process {taker}, which took it, is gone: "
                f"end process {child}, which it had started"
            )
        finally:
            os.kill(child, signal.SIGKILL)


def test_held_locks_in_a_damaged_list_of_dvc_are_named(project: Path) -> None:
    (project / ".dvc/tmp").mkdir()
    (project / ".dvc/tmp/rwlock").write_text('{"outputs": {"read": []}}')
    assert all_well("held_locks")
    (project / ".dvc/tmp/rwlock").write_text('{"outputs"')
    assert ".dvc/tmp/rwlock is damaged: make run mends it" in wrong("held_locks")


@contextmanager
def waiting(parent: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that only waits, and that was started by the process `parent`, as it says."""
    environment = {**os.environ, PARENT_VARIABLE: str(parent)}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_left_processes_that_have_outlived_their_flow_or_stand_still_are_named(project: Path) -> None:
    with waiting(os.getpid()) as process:
        assert all_well("left_processes")
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: not all_well("left_processes"), "the stop")
        assert f"kill -CONT {process.pid} lets it go on" in wrong("left_processes")
    with waiting(ENDED) as process:
        assert f"has outlived process {ENDED}, which started it: kill {process.pid}" in wrong("left_processes")


def test_left_processes_of_other_folders_are_none_of_its_business(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with waiting(ENDED):
        (project / "other").mkdir()
        monkeypatch.chdir(project / "other")
        assert all_well("left_processes")


def test_server_answers_that_are_missing_are_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_well("server_answers")
    (project / ".sana15/servers").mkdir(parents=True)
    (project / ".sana15/servers/prefect.pid").write_text(f"{ENDED} 1.0")
    assert "prefect was started and has ended: .sana15/servers/prefect.log says why" in wrong("server_answers")
    (project / ".sana15/servers/prefect.pid").unlink()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setenv(API_VARIABLE, f"{url}/api")
    assert f"{url}/api cannot be reached" in wrong("server_answers")
    monkeypatch.delenv(API_VARIABLE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    assert f"MLflow: {url}/health cannot be reached" in wrong("server_answers")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    credentials()
    assert all_well("server_answers")
    (project / ".sana15/password").chmod(0o644)
    assert "may be read by others" in wrong("server_answers")


def test_databases_that_are_damaged_are_named_and_whole_ones_are_not(project: Path) -> None:
    path = project / "mlflow.db"
    database(path)
    assert all_well("databases")
    whole = path.read_bytes()
    for damaged in (b"no database at all", whole[:4096] + os.urandom(len(whole) - 4096), whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        line = wrong("databases")
        assert "mlflow.db is damaged" in line and "move it away" in line and "sqlite3 mlflow.db .recover" in line
    assert sorted(one.name for one in project.glob("mlflow*")) == ["mlflow.db"]


@pytest.mark.parametrize(("name", "package"), [("mlflow.db", "mlflow"), (".prefect/prefect.db", "prefect")])
def test_databases_of_a_newer_version_are_told_from_older_ones(project: Path, name: str, package: str) -> None:
    from flows.doctor.databases import MIGRATIONS, migrations

    known, newest = migrations(*MIGRATIONS[Path(name).name])
    assert len(known) > 20 and len(newest) == 1
    database(project / name, "ffffffffffff")
    assert f"{name} was made by a newer {package} than is installed" in wrong("databases")
    for version, says in ((next(iter(newest)), "is whole"), (next(iter(known - newest)), "of an older")):
        (project / name).unlink()
        database(project / name, version)
        (finding,) = findings("databases")
        assert not finding.wrong and f"{name} is whole" in finding.line and says in finding.line


def test_databases_with_a_write_ahead_log_are_read_with_it(project: Path) -> None:
    database(path := project / "mlflow.db")
    with closing(sqlite3.connect(path)) as writing:
        writing.execute("PRAGMA journal_mode = WAL")
        writing.execute("CREATE TABLE alembic_version (version_num TEXT)")
        writing.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
        writing.commit()
        assert "made by a newer mlflow" in wrong("databases")


def test_dvc_records_that_are_damaged_are_named(project: Path) -> None:
    assert all_well("dvc_records")
    for name, garbage, way_out in (
        ("dvc.lock", b"schema: '2.0'\nstages: 7\n", "make run puts its last good copy in place"),
        (".dvc/config", b"[core\n", "take it back from git"),
        (".dvc/config", b"\xff\xfe\x00", "take it back from git"),
        (".dvc/config.local", b"[cache]\n    directory = 7\n", "delete it"),
        ("dvc.yaml", b"stages: {}\n", "run make dvc.yaml"),
    ):
        path = project / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(garbage)
        line = wrong("dvc_records")
        assert name in line and way_out in line
        path.unlink() if before is None else path.write_bytes(before)
    shutil.rmtree(project / ".dvc")
    assert ".dvc is missing: take it back from git" in wrong("dvc_records")


def test_manifests_that_outputs_and_training_states_do_not_fit_are_named(project: Path) -> None:
    for name in ("outputs/grown", "runs/smoke/outputs/grown", ".sana15/state/train/0123/step-00000010"):
        if name.startswith("runs"):
            (project / "runs/smoke").mkdir(parents=True)
            shutil.copyfile("params.yaml", "runs/smoke/params.yaml")
        data = output(project, name) / "data.bin"
        assert all_well("manifests", thorough=True)
        data.write_bytes(b"0123x56789")  # of the same size
        assert all_well("manifests")
        assert f"{name}/data.bin does not match its manifest.json: delete {name}" in wrong("manifests", thorough=True)
        data.write_bytes(b"0123")
        assert f"{name}/data.bin does not match" in wrong("manifests")
        data.unlink()
        assert f"{name}/data.bin is missing" in wrong("manifests")
        data.write_bytes(b"0123456789")
        (manifest := data.with_name("manifest.json")).write_text("{}")
        assert f"{name}/manifest.json is no manifest" in wrong("manifests")
        manifest.write_text(json.dumps({"files": {}}))
    (project / "outputs/grown/manifest.json").unlink()
    assert "outputs/grown/manifest.json is missing" in wrong("manifests")


def test_gpu_that_params_ask_for_and_that_is_not_there_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "bin").mkdir()
    monkeypatch.setenv("PATH", str(project / "bin"))
    assert all_well("gpu")
    write_params(project, {"compute.device": "cuda"})
    assert "compute.device is cuda, and there is no nvidia-smi" in wrong("gpu")
    (tool := project / "bin/nvidia-smi").write_text("#!/bin/sh\necho 'Driver/library version mismatch'\nexit 18\n")
    tool.chmod(0o755)
    assert "nvidia-smi says: Driver/library version mismatch: restart the host" in wrong("gpu")

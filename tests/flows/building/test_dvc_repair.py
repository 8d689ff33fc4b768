"""A killed writer of `dvc.lock`, and damaged records and objects of DVC, in a real project of three stages."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from flows.building.durable_dvc_lock import DAMAGED, LAST_GOOD
from flows.building.workspace import COPIED_FILES, open_workspace
from tasks.system.manifest import MANIFEST
from tests.helpers.patience import PATIENCE_SECONDS, wait_for
from tests.helpers.three_stages import add_remote, build, seen, set_params, status, taken, three_stage_project

PROJECT = Path(__file__).parents[3]

# Builds the project until dvc.lock is written for the second time; then it stands still in the middle of that.
STANDS_STILL = """
import io, os, sys, time
from pathlib import Path
import pytest
import ruamel.yaml
from tests.helpers.three_stages import TABLE, build
from tasks import stages

where = sys.argv[1]
stages.TABLE = TABLE
writes = 0

def stand_still():
    Path("stands_still").touch()
    time.sleep(3600)

whole_dump, whole_fsync, whole_replace = ruamel.yaml.YAML.dump, os.fsync, os.replace

def is_lock(data):
    return isinstance(data, dict) and "stages" in data and "schema" in data

def dump(self, data, stream=None, **options):
    global writes
    if not is_lock(data):
        return whole_dump(self, data, stream, **options)
    writes += 1
    if writes == 2 and where == "dump":
        whole_dump(self, data, text := io.StringIO(), **options)
        stream.write(text.getvalue()[: len(text.getvalue()) // 2])
        stream.flush()
        stand_still()
    return whole_dump(self, data, stream, **options)

def fsync(descriptor):
    whole_fsync(descriptor)
    name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
    if writes == 2 and where == "fsync" and name.startswith(".dvc.lock"):
        stand_still()

def replace(source, target):
    if writes == 2 and where == "rename" and Path(target).name == "dvc.lock":
        stand_still()
    whole_replace(source, target)

ruamel.yaml.YAML.dump, os.fsync, os.replace = dump, fsync, replace
build(Path.cwd())
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with three_stage_project(tmp_path / "project", monkeypatch) as root:
        yield root


@pytest.mark.parametrize("where", ["dump", "fsync", "rename"])
def test_a_flow_that_is_killed_while_it_writes_the_lock_goes_on_without_hands(project: Path, where: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-c", STANDS_STILL, where], env=environment)
    try:
        wait_for(lambda: (project / "stands_still").exists() or process.poll() is not None, "the middle of a write")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
    # DVC's run cache has noted the second stage, so nothing is computed twice
    took = build(project)
    assert took["first"] == "cached" and took["second"] in ("cached", "restored") and took["report"] == "ran"
    assert status(project) == {}
    assert not list(project.glob(".dvc.lock*"))


@pytest.mark.parametrize("cut", [0, 1, 57, -200, -60, -1])
def test_a_lock_that_dvc_repro_left_truncated_is_mended_from_its_copy_and_the_run_cache(
    project: Path, cut: int, capfd: pytest.CaptureFixture[str]
) -> None:
    build(project)
    set_params(project, 1, 2)
    with Repo(str(project)) as repo:
        repo.reproduce()
    lock = project / "dvc.lock"
    whole = lock.read_bytes()
    before = seen(project, "second")
    lock.write_bytes(whole[:cut])
    took = build(project)
    assert took["first"] in ("cached", "restored") and took["second"] in ("cached", "restored")
    assert yaml.safe_load(lock.read_text()) == yaml.safe_load(whole) and seen(project, "second") == before
    if cut in (0, 1):
        said = capfd.readouterr().err
        assert "dvc.lock was damaged" in said and str(DAMAGED) in said
        assert (project / DAMAGED).read_bytes() == whole[:cut]


def test_a_lock_that_is_garbage_is_mended_also_without_a_copy(project: Path) -> None:
    build(project)
    lock = project / "dvc.lock"
    whole = lock.read_bytes()
    for garbage in (
        b"\xff\xfe" + os.urandom(200),
        b"- 1\n- 2\n",
        b"schema: '2.0'\nstages: 7\n",
        b"<<<<<<< HEAD\n" + whole,
    ):
        lock.write_bytes(garbage)
        (project / LAST_GOOD).unlink(missing_ok=True)
        took = build(project)
        assert (took["first"], took["second"]) == ("restored", "restored")
        assert lock.read_bytes() == whole


def test_random_flips_and_cuts_of_the_lock_never_stop_a_run_or_change_an_output(project: Path) -> None:
    build(project)
    lock = project / "dvc.lock"
    whole = lock.read_bytes()
    outputs = {name: seen(project, name) for name in ("first", "second")}
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(8):
        data = bytearray(whole)
        if dice.random() < 0.5:
            data = data[: dice.randrange(len(data))]
        else:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        lock.write_bytes(data)
        took = build(project)
        assert took["first"] != "ran" and took["second"] != "ran"
        assert {name: seen(project, name) for name in outputs} == outputs


@pytest.mark.parametrize("how", ["empty folder", "no folder", "empty files", "garbage"])
def test_temporary_files_of_dvc_may_be_emptied(project: Path, how: str) -> None:
    build(project)
    temporary = project / ".dvc/tmp"
    if how == "empty files":
        for path in temporary.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    elif how == "garbage":
        (temporary / "rwlock").write_bytes(b'{"write": {"a')
    else:
        shutil.rmtree(temporary)
        if how == "empty folder":
            temporary.mkdir()
    set_params(project, 1, 2)
    assert build(project) == taken("cached", "ran", "ran")


def damage_object(root: Path, content: bytes, how: str) -> Path:
    """Damage the object of DVC's cache that has this content, as a rotten disk does: DVC sees nothing of it."""
    (path,) = [
        path for path in (root / ".dvc/cache/files/md5").rglob("*") if path.is_file() and path.read_bytes() == content
    ]
    status_before = path.stat()
    data = bytearray(content)
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data if how == "flip" else data[:-3])
    os.utime(path, ns=(status_before.st_atime_ns, status_before.st_mtime_ns))
    path.chmod(0o444)
    return path


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("what", ["seen", MANIFEST, "list"])
def test_a_damaged_object_of_the_cache_is_taken_out_and_its_stage_built_anew(
    project: Path, what: str, how: str
) -> None:
    build(project)
    good = {name: (project / "outputs/first" / name).read_bytes() for name in ("seen", MANIFEST)}
    if what == "list":
        (content,) = {
            path.read_bytes()
            for path in (project / ".dvc/cache/files/md5").rglob("*.dir")
            if b"seen" in path.read_bytes() and path.name[:-4] in (project / "dvc.lock").read_text().split("second")[0]
        }
    else:
        content = good[what]
    damaged = damage_object(project, content, how)
    rotten = damaged.read_bytes()
    for _ in range(2):
        shutil.rmtree(project / "outputs/first")
        took = build(project)
        assert {name: (project / "outputs/first" / name).read_bytes() for name in good} == good
    assert took == taken("restored", "cached", "cached")
    assert damaged.read_bytes() == content != rotten


def test_a_damaged_object_is_fetched_anew_where_a_remote_has_it(project: Path, tmp_path: Path) -> None:
    add_remote(project, tmp_path / "remote")
    build(project, remote=True)
    before = seen(project, "first")
    damage_object(project, before, "flip")
    shutil.rmtree(project / "outputs/first")
    assert build(project, remote=True) == taken("restored", "cached", "cached")
    assert seen(project, "first") == before


def test_a_damaged_object_does_not_replace_the_same_bytes_that_a_stage_has_just_made(project: Path) -> None:
    build(project)
    before = seen(project, "first")
    damage_object(project, before, "flip")
    (project / "code").write_text("2")
    assert build(project)["first"] == "ran"
    assert seen(project, "first") == before
    shutil.rmtree(project / "outputs/first")
    build(project)
    assert seen(project, "first") == before


def test_the_advice_on_what_dvc_repro_took_out_of_a_damaged_cache_leads_out(project: Path) -> None:
    build(project)
    before = seen(project, "first")
    damage_object(project, before, "flip")
    shutil.rmtree(project / "outputs/first")
    with Repo(str(project)) as repo:
        repo.reproduce("first")
    assert seen(project, "first") != before  # DVC itself does not look
    shutil.rmtree(project / "outputs/first")
    build(project)
    assert seen(project, "first") == before


def test_outputs_that_a_killed_flow_has_restored_and_not_checked_are_restored_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(project)
    before = seen(project, "first")
    damage_object(project, before, "flip")
    shutil.rmtree(project / "outputs/first")

    class Killed(BaseException):
        pass

    def killed(folder: Path) -> list[Path]:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("flows.building.dvc_lock.damaged_files", killed)
        with pytest.raises(Killed):
            build(project)
    assert seen(project, "first") != before
    build(project)
    assert seen(project, "first") == before


@pytest.mark.parametrize("record", [b"", b"{}", b"[]", b'["/etc/passwd"]', b"[7]"])
def test_a_copy_whose_record_of_copied_files_is_damaged_loses_what_the_project_has_deleted(
    project: Path, record: bytes
) -> None:
    (project / "tasks").mkdir()
    (project / "tasks/kept.py").write_text("kept")
    (project / "tasks/deleted.py").write_text("deleted")
    copy = open_workspace(project, None, {"workflow.retries": 2})
    assert (copy / "tasks/deleted.py").exists()
    (project / "tasks/deleted.py").unlink()
    (copy / COPIED_FILES).write_bytes(record)
    open_workspace(project, None, {"workflow.retries": 2})
    assert (copy / "tasks/kept.py").exists() and not (copy / "tasks/deleted.py").exists()

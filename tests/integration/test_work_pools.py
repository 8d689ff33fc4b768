"""Sweeps in a Prefect work pool: a real server, real process workers, and what happens when one of them is killed."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from dvc.config import Config
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.settings.legacy import Setting
from prefect.states import Cancelling, Crashed, Running

from flows.places import work_pool_flows
from flows.places.git_origin import GitOrigin, read_git_origin
from flows.places.heartbeat import BEAT_LABEL
from flows.places.work_pool import WorkPool
from flows.sweeps.place_interface import PointState
from flows.sweeps.point_folder import LOG_FILE, OUTCOME_FILE
from flows.sweeps.points import Point, code_of_stages
from flows.sweeps.sweep_file import SWEEPS, Cluster
from tasks.params.params_files import PARAMS_FILE, PROFILES, read_yaml
from tasks.system.errors import UserError
from tasks.system.manifest import verify_manifest
from tests.helpers.other_account import free_port
from tests.helpers.patience import PIPELINE_SECONDS, wait_for
from tests.helpers.small_workspace import PROJECT
from tests.helpers.whole_pipeline import BIN, Clone, PrefectServer, kill_all, new_clone, new_origin

POOL, TAG = "points", "sana15 sweep test of nothing"
LOST_SECONDS = 40
"""Of a whole sweep: longer than a busy machine keeps a run that lives from beating."""
FINETUNE_STEPS = 200
"""So long that a fine-tune can be caught in the middle, with a checkpoint after every eighth step."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, whose smoke profile has few stages and a long fine-tune, and whose sweep is told of losses soon."""
    root = new_origin(tmp_path_factory.mktemp("origin"), read_yaml(PROJECT / PARAMS_FILE))
    change(root / PROFILES / "smoke.yaml", finetune={"steps": FINETUNE_STEPS, "evaluate_every": FINETUNE_STEPS})
    change(root / PROFILES / "smoke.yaml", workflow={"baselines": ["grown"]})
    sweep = read_yaml(root / SWEEPS / "prune-depth.yaml")
    sweep["profiles"]["smoke"]["cluster"] = {"pool": POOL, "lost_seconds": LOST_SECONDS}
    sweep["profiles"]["smoke"]["grid"] = {"prune.depths": [[2], [1]]}
    (root / SWEEPS / "prune-depth.yaml").write_text(yaml.safe_dump(sweep))
    commit(root)
    return root


def change(path: Path, **sections: dict[str, Any]) -> None:
    """Replace values of a YAML file's sections."""
    values = read_yaml(path)
    for name, changed in sections.items():
        values[name] = values.get(name, {}) | changed
    path.write_text(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def server(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A clone's server, with a pool that has no workers yet."""
    server = PrefectServer(new_clone(origin, tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("server"))
    try:
        server.say("work-pool", "create", POOL, "--type", "process", "--base-job-template", str(PROJECT / TEMPLATE))
        yield server
    finally:
        server.close()


TEMPLATE = "flows/places/templates/process.json"

# --- flow runs


def access(server: PrefectServer) -> dict[Setting, str]:
    """The settings of its clients."""
    return {PREFECT_API_URL: server.api, PREFECT_API_AUTH_STRING: server.access["PREFECT_API_AUTH_STRING"]}


@pytest.fixture
def pool(server: PrefectServer) -> Iterator[WorkPool]:
    """The pool as a sweep sees it."""
    with temporary_settings(access(server)):
        yield WorkPool(server.clone.root, POOL, Cluster(), TAG)


def point_of(folder: Path, key: str, code: str) -> Point:
    """A point whose own code is this."""
    (folder / OUTCOME_FILE).parent.mkdir(parents=True)
    (folder / "flows/sweeps").mkdir(parents=True)
    for package in ("flows", "flows/sweeps"):
        (folder / package / "__init__.py").touch()
    (folder / "flows/sweeps/point_program.py").write_text(code)
    return Point(key, key, folder, {}, {}, 0)


def phase_is(pool: WorkPool, point: Point, run: str, phase: str) -> PointState:
    """Wait for this phase, which is the next but for those that a run goes through on its way."""
    while (state := pool.state(point, run)).phase != phase:
        assert state.phase in ("queued", "running"), f"{point.label} is {state}"
        time.sleep(0.1)
    return state


SLEEPS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("saved"))
print("begun", os.getpid(), os.environ["SANA15_PARENT_PID"], flush=True)
time.sleep(3000)
"""


def begun(point: Point) -> list[tuple[int, int]]:
    """The processes of a point that sleeps, by its log, each with that of its flow run."""
    log = point.folder / LOG_FILE
    text = log.read_text() if log.exists() else ""
    return [(int(one), int(other)) for one, other in re.findall(r"begun (\d+) (\d+)", text)]


def test_a_run_is_found_by_its_points_key_cancelled_by_its_sweeps_tag_and_never_there_twice(
    server: PrefectServer, pool: WorkPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.places.work_pool.MOST_WAITING", 2)
    one, two = (point_of(tmp_path / name, name, SLEEPS) for name in ("one", "two"))
    assert pool.find_run(one) is None and pool.has_room()
    runs = [pool.submit(one), pool.submit(two)]
    assert not pool.has_room()
    other = WorkPool(server.clone.root, POOL, Cluster(), "another sweep")
    assert str(other._create(one, 1).id) == runs[0]  # by a sweep that asked just before the first one's run was there
    assert other.submit(two) == runs[1]
    assert [other.find_run(one), other.find_run(two)] == runs
    assert pool.state(one, runs[0]) == PointState("queued")
    third = point_of(tmp_path / "three", "three", SLEEPS)
    other.find_run(third)
    kept = other.submit(third)
    worker = server.worker("first", POOL)
    wait_for(lambda: begun(one), "the first run to begin")
    assert phase_is(pool, one, runs[0], "running")
    pool.cancel_all()
    phase_is(pool, one, runs[0], "failed")
    phase_is(pool, two, runs[1], "failed")
    assert "saved" in (one.folder / LOG_FILE).read_text() and begun(two) == []
    assert "Cancel" in pool.state(one, runs[0]).reason
    wait_for(lambda: begun(third), "the other sweep's run to begin")
    # a worker that is killed alone leaves its run behind, which ends itself
    worker.kill()
    lost = phase_is(other, third, kept, "lost")
    assert lost.reason == "its worker is gone"
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in begun(third)[0]), "the run to be gone")
    assert "saved" in (third.folder / LOG_FILE).read_text()
    assert other.find_run(third) is None and other.submit(third) != kept
    other.cancel_all()


def test_a_silent_run_is_lost_but_one_that_was_being_cancelled_is_not_run_again(
    server: PrefectServer, tmp_path: Path
) -> None:
    with temporary_settings(access(server)):
        pool, client = WorkPool(server.clone.root, POOL, Cluster(lost_seconds=1), TAG), get_client(sync_client=True)
        for name, begun_as, phase, becomes in (
            ("silent", Running(), "lost", "Crashed"),
            ("unwanted", Cancelling(), "failed", "Cancelled"),
        ):
            point = point_of(tmp_path / name, name, "")
            run = str(client.create_flow_run(work_pool_flows.run_point, parameters={}, state=begun_as).id)
            assert pool.state(point, run).phase == "running"
            reason = phase_is(pool, point, run, phase).reason
            assert "nothing was heard of it for 1 seconds" in reason
            assert client.read_flow_run(run).state.name == becomes
            assert pool.state(point, run) == PointState(phase, reason)


def test_a_run_that_fails_is_told_with_its_own_reason_here_and_in_prefect(
    server: PrefectServer, pool: WorkPool, tmp_path: Path
) -> None:
    fails = "import sys\nprint('no memory', file=sys.stderr)\nsys.exit(3)"
    tells = f"from pathlib import Path\nPath({str(OUTCOME_FILE)!r}).write_text('{{}}')\nraise SystemExit(1)"
    tells = tells.replace("{}", '{"reason": "bad depth", "seconds": 1, "models": []}')
    one, two = point_of(tmp_path / "fails", "fails", fails), point_of(tmp_path / "tells", "tells", tells)
    runs = [pool.submit(one), pool.submit(two)]
    worker = server.worker("second", POOL)
    phase_is(pool, one, runs[0], "failed")
    assert "ended by exit code 3: no memory" in pool.state(one, runs[0]).reason
    assert phase_is(pool, two, runs[1], "failed") == PointState("failed", "bad depth")
    said = get_client(sync_client=True).read_flow_run(runs[1]).state
    assert said.is_failed() and "bad depth" in said.message
    kill_all(worker)


class ClockOfItsOwn:
    """Stands for the module `time`: each look at it takes `step` seconds, and to sleep takes no real time."""

    def __init__(self, step: float) -> None:
        self.seconds, self._step = 0.0, step

    def monotonic(self) -> float:
        self.seconds += self._step
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_run_that_cannot_reach_its_folder_ends_itself_before_another_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ClockOfItsOwn(step=0.25)
    monkeypatch.setattr(work_pool_flows, "time", clock)
    monkeypatch.setattr(work_pool_flows, "LOOK_SECONDS", 0.01)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3000)"])
    try:
        said = work_pool_flows.watch(
            process, os.getppid(), work_pool_flows.folder_beats(tmp_path / "gone", lost_seconds=4), 0.4
        )
        assert said == "it could not reach its folder for 2 seconds"
        assert clock.seconds < 4
    finally:
        process.kill()
        process.wait()


def test_a_run_in_a_clone_beats_on_its_flow_run_and_ends_itself_when_it_is_given_up(
    server: PrefectServer, pool: WorkPool
) -> None:
    client = get_client(sync_client=True)
    run = client.create_flow_run(work_pool_flows.run_clone, state=Running()).id
    sign = work_pool_flows.server_beats(client, run)
    beats = set()
    for _ in range(2):
        assert sign() is None
        beats.add(client.read_flow_run(run).labels[BEAT_LABEL])
    assert len(beats) == 2
    client.set_flow_run_state(run, Crashed(), force=True)
    assert sign() == "it was given up: Crashed"
    client.delete_flow_run(run)
    assert sign() == "Prefect knows it no more"
    nobody = SyncPrefectClient(f"http://127.0.0.1:{free_port()}/api")
    assert work_pool_flows.server_beats(nobody, run)() is None  # a server that is away may come back


def test_the_time_in_which_the_server_was_away_is_no_runs_silence(
    pool: WorkPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody_answers() -> None:
        raise httpx.ConnectError("nobody")

    clock = ClockOfItsOwn(step=0.01)
    monkeypatch.setattr("flows.places.work_pool.time", clock)
    monkeypatch.setattr("flows.places.heartbeat.time", clock)
    monkeypatch.setattr("flows.places.work_pool.SERVER_AWAY_SECONDS", 10.0)
    assert pool._silence.seconds("run", "beat") == 0
    with pytest.raises(UserError, match="does not answer: nobody"):
        pool._answer(nobody_answers)
    assert pool._silence.seconds("run", "beat") < 0.5
    assert clock.seconds > 10
    pool._answer(lambda: clock.sleep(20))  # Prefect's client tries again by itself
    assert pool._silence.seconds("run", "beat") < 0.5


def test_without_a_server_or_a_pool_one_line_says_what_to_do(
    server: PrefectServer, pool: WorkPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no work pool nowhere: prefect work-pool create"):
        WorkPool(server.clone.root, "nowhere", Cluster(), TAG)
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(UserError, match="PREFECT_API_URL"):
        WorkPool(server.clone.root, POOL, Cluster(), TAG)
    with temporary_settings({PREFECT_API_AUTH_STRING: "another"}), pytest.raises(UserError) as refused:
        WorkPool(server.clone.root, POOL, Cluster(), TAG)
    assert "does not accept the password: PREFECT_API_AUTH_STRING" in str(refused.value)
    monkeypatch.setattr("flows.places.work_pool.SERVER_AWAY_SECONDS", 0.5)
    nobody = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: nobody}), pytest.raises(UserError, match=f"{nobody}.* does not answer"):
        WorkPool(server.clone.root, POOL, Cluster(), TAG)


def test_a_pool_is_given_what_its_template_asks_of_a_cluster_and_refuses_runs_without_an_image(
    server: PrefectServer, pool: WorkPool, tmp_path: Path
) -> None:
    shipped = str(PROJECT / "flows/places/templates/kubernetes.json")
    server.say("work-pool", "create", "cluster", "--type", "kubernetes", "--base-job-template", shipped)
    cluster = WorkPool(server.clone.root, "cluster", Cluster(gpus=2, cpus=8), TAG)
    assert (cluster._variables, pool._variables) == ({"gpus": 2, "cpus": 8}, {})
    with pytest.raises(UserError, match=r"Prefect refuses: .*'(image|folder)' is a required property"):
        cluster.submit(point_of(tmp_path, "any", ""))


# --- a whole sweep


def table(clone: Clone) -> list[dict[str, str]]:
    """The sweep's table without where and how long, and without the Pareto set, which hangs on how long."""
    timed = ("folder", "seconds", "pareto")
    lines = csv.DictReader((clone.root / "results/sweeps/prune-depth@smoke/table.csv").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The table of the same sweep on one machine."""
    clone = new_clone(origin, tmp_path_factory.mktemp("undisturbed"))
    done = clone.python("-m", "flows.sweep", "prune-depth", "--profile", "smoke", "--parallel", "2")
    assert done.returncode == 0, done.stderr
    return table(clone)


def test_a_killed_sweep_goes_on_a_lost_hosts_point_is_run_again_and_the_table_is_that_of_an_undisturbed_one(
    server: PrefectServer, pool: WorkPool, undisturbed: list[dict[str, str]], tmp_path: Path
) -> None:
    clone, logs = server.clone, [tmp_path / "first.log", tmp_path / "second.log"]
    workers = [server.worker(name, POOL) for name in ("left", "right")]
    sweeps = [clone.begin_sweep("work-pool", logs[0])]
    found: list[tuple[Path, psutil.Popen]] = []

    def says(words: str) -> bool:
        assert sweeps[-1].poll() is None, logs[len(sweeps) - 1].read_text()
        return words in logs[len(sweeps) - 1].read_text()

    def caught() -> bool:
        assert sweeps[-1].poll() is None, logs[len(sweeps) - 1].read_text()
        for checkpoint in (clone.root / "runs/points").glob("*/.sana15/state/finetune@*/*/step-*"):
            folder = checkpoint.parents[4]
            found.append((folder, next(one for one in workers if at_work_in(one, folder))))
        return bool(found)

    try:
        wait_for(lambda: says("prune.depths=[2]") and says("prune.depths=[1]"), "the points to run", PIPELINE_SECONDS)
        kill_all(sweeps[0])
        sweeps.append(clone.begin_sweep("work-pool", logs[1]))
        wait_for(caught, "a fine-tune's middle", PIPELINE_SECONDS)
        folder, worker = found[0]
        kill_all(worker)
        assert sweeps[1].wait(PIPELINE_SECONDS) == 0, logs[1].read_text()
    finally:
        for sweep in sweeps:
            kill_all(sweep, signal.SIGTERM)
    assert "lost: nothing was heard of it for" in logs[1].read_text()
    assert re.search(r"finetune@\d \| resuming after step", (folder / LOG_FILE).read_text())
    runs = [tag for run in pool._runs() for tag in run.tags]
    points = [path.name for path in (clone.root / "runs/points").iterdir()]
    assert {point: runs.count(point) for point in points} == {point: 1 + (point == folder.name) for point in points}
    assert table(clone) == undisturbed
    assert [line["model"] for line in table(clone)] == ["finetuned-2", "finetuned-1"]


def at_work_in(worker: psutil.Process, folder: Path) -> bool:
    """Whether something that the worker has begun runs in this folder."""
    for child in worker.children(recursive=True):
        try:
            if Path(child.cwd()) == folder:
                return True
        except psutil.Error:
            continue
    return False


# --- hosts that share no folder


@pytest.fixture
def published(origin: Path, tmp_path: Path) -> Path:
    """The project as others can clone it, with a DVC remote that they reach, and a sweep whose points are clones."""
    root = tmp_path / "published"
    shutil.copytree(origin, root)
    with Config(str(root / ".dvc")).edit("repo") as settings:
        settings["remote"] = {"storage": {"url": str(tmp_path / "storage")}}
        settings["core"]["remote"] = "storage"
    sweep = read_yaml(root / SWEEPS / "prune-depth.yaml")
    sweep["profiles"]["smoke"]["cluster"] = {"pool": "clones", "clone": True, "lost_seconds": LOST_SECONDS}
    (root / SWEEPS / "prune-depth.yaml").write_text(yaml.safe_dump(sweep))
    commit(root)
    return root


def commit(root: Path) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *author, "commit", "-aqm", "changed"], cwd=root, check=True)


def test_points_in_clones_of_their_own_give_the_same_table_and_dvc_pull_brings_their_models(
    server: PrefectServer, undisturbed: list[dict[str, str]], published: Path, tmp_path: Path
) -> None:
    server.say("work-pool", "create", "clones", "--type", "process", "--base-job-template", str(PROJECT / TEMPLATE))
    clone, logs = new_clone(published, tmp_path / "clone"), [tmp_path / "first.log", tmp_path / "second.log"]
    clone.environment.update(server.access)
    workers = [server.worker(f"clones-{name}", "clones") for name in ("left", "right")]
    sweeps = [clone.begin_sweep("work-pool", logs[0])]

    def says(words: str) -> bool:
        text = logs[len(sweeps) - 1].read_text()
        assert words in text or sweeps[-1].poll() is None, text
        return words in text

    try:
        wait_for(lambda: says("prune.depths=[2]") and says("prune.depths=[1]"), "the points to run", PIPELINE_SECONDS)
        kill_all(workers[1])
        kill_all(sweeps[0])
        sweeps.append(clone.begin_sweep("work-pool", logs[1]))
        assert sweeps[1].wait(PIPELINE_SECONDS) == 0, logs[1].read_text()
    finally:
        for one in (*sweeps, workers[0]):
            kill_all(one, signal.SIGTERM)
    assert "lost: nothing was heard of it for" in logs[1].read_text()
    assert table(clone) == undisturbed
    for line in csv.DictReader((clone.root / "results/sweeps/prune-depth@smoke/table.csv").read_text().splitlines()):
        folder = Path(line["folder"])
        assert not (folder / "outputs").exists() and "report: done" in (folder / LOG_FILE).read_text()
        subprocess.run([BIN / "dvc", "pull", "-q", "outputs/" + line["model"]], cwd=folder, check=True)
        verify_manifest(folder / "outputs" / line["model"])
        (folder / OUTCOME_FILE).unlink()
    third = clone.begin_sweep("work-pool", tmp_path / "third.log")  # for which nobody works: Prefect remembers
    assert third.wait(PIPELINE_SECONDS) == 0 and table(clone) == undisturbed


def test_what_others_could_not_clone_is_refused_before_any_work(published: Path, tmp_path: Path) -> None:
    clone = new_clone(published, tmp_path / "clone").root
    assert read_git_origin(clone) == GitOrigin(str(published), git(published, "rev-parse", "HEAD"))
    (clone / "model/new.py").write_text("")
    with pytest.raises(UserError, match=r"model/new.py is not committed: commit and push it"):
        read_git_origin(clone)
    (clone / "model/new.py").unlink()
    settings = clone / ".dvc/config"
    whole = settings.read_text()
    (clone / PARAMS_FILE).write_text((clone / PARAMS_FILE).read_text() + "# mine\n")
    assert read_git_origin(clone)  # params travel with the sweep
    local = clone / ".dvc/config.local"
    local.write_text("[core]\n    remote = mine\n['remote \"mine\"']\n    url = /elsewhere\n")
    with pytest.raises(UserError, match="DVC's remote is another one here than storage"):
        read_git_origin(clone)
    local.unlink()
    for written, refused in (
        (
            whole.replace(str(tmp_path / "storage"), "../../storage"),
            r"remote storage is a path relative .* dvc remote add -d",
        ),
        (whole.replace("remote = storage", ""), r"has no default remote: dvc remote add -d"),
        ("[core", r"config file error: .* at line 1"),
    ):
        settings.write_text(written)
        commit(clone)
        with pytest.raises(UserError, match=r"commit \w{8} is not in origin: git push"):
            read_git_origin(clone)
        git(clone, "update-ref", "refs/remotes/fork/master", "HEAD")
        with pytest.raises(UserError, match=r"is not in origin"):
            read_git_origin(clone)
        git(clone, "update-ref", "refs/remotes/origin/master", "HEAD")
        with pytest.raises(UserError, match=refused):
            read_git_origin(clone)
    for url, refused in (
        ("https://me:secret@example.com/project.git", "origin holds a name"),
        ("https://secret@example.com/project.git", "origin holds a name"),
        ("ssh://me:secret@example.com/project.git", "origin holds a name"),
        ("https://example.com/project.git?private_token=secret", "origin holds a name"),
        ("../published", "is relative"),
    ):
        git(clone, "remote", "set-url", "origin", url)
        with pytest.raises(UserError, match=refused) as error:
            read_git_origin(clone)
        assert "secret" not in str(error.value)
    git(clone, "remote", "remove", "origin")
    with pytest.raises(UserError, match=r"no git repository with a remote named origin"):
        read_git_origin(clone)


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_a_clone_with_other_code_than_the_sweeps_refuses_the_point(
    server: PrefectServer, published: Path, tmp_path: Path
) -> None:
    clone = new_clone(published, tmp_path / "clone", **server.access)
    digest = "from flows.sweeps.points import code_of_stages; print(code_of_stages())"
    code = clone.python("-c", digest).stdout.strip()
    assert code == code_of_stages()
    (clone.root / "model/network.py").write_text((clone.root / "model/network.py").read_text() + "# edited\n")
    given = f"'key', 'label', 'sweep', 'name', {{}}, None, {{}}, {code!r}, '', 1, 120"
    done = clone.python("-c", f"from flows.places.work_pool_flows import run_clone; run_clone({given})")
    assert done.returncode == 1 and "PointFailed: the code in the clone" in done.stderr
    assert not (clone.root / "runs").exists()

"""A sweep's file means points with keys, what is done is not run again, and a table follows."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.building.workspace import merged_params
from flows.entry.terminal import FlowFailed
from flows.places.gpu_leases import lease
from flows.places.heartbeat import Silence
from flows.places.local_processes import LocalProcesses
from flows.sweep import raise_failures, readable, run_points, sweep
from flows.sweeps import follow_points as following
from flows.sweeps.follow_points import follow
from flows.sweeps.place_interface import PointState
from flows.sweeps.point_folder import OUTCOME_FILE, point_environment
from flows.sweeps.points import Point, expand, shared_stages
from flows.sweeps.sweep_file import SWEEPS, Sweep, read_sweep
from flows.sweeps.sweep_table import Row, rows_of, settings_of, write_table
from tasks.params.params_files import PARAMS_FILE, PROFILES
from tasks.system.errors import UserError
from tasks.system.files import write_json
from tests.helpers.patience import wait_for
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR

SHIPPED = (
    "prune-depth",
    "growth-strategy",
    "optimizer",
    "weights",
    "dropped-blocks",
    "inference-scaling",
    "teacher",
    "seeds",
    "sft",
)
SCALES = [(name, profile) for name in SHIPPED for profile in (None, "smoke", "gpu") if name != "sft" or profile is None]
"""The shipped sweeps with the profiles that they can be run for. The sweep sft needs the models of its own profile."""
DEPTHS = {"from": "prune", "grid": {"prune.depths": [[3], [2]]}, "profile": "smoke"}


@pytest.fixture(autouse=True)
def unread_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """To parse the code for its digest takes a second each time."""
    monkeypatch.setattr("flows.sweeps.points.code_digest", lambda stage: stage)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of params, profiles and dvc.yaml alone, as the working directory."""
    (tmp_path / SWEEPS).mkdir()
    for name in (str(PARAMS_FILE), "dvc.yaml", str(PROFILES)):
        (tmp_path / name).symlink_to(PROJECT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(project: Path, values: dict[str, Any]) -> Sweep:
    """A sweep that was written to a file and read."""
    (project / SWEEPS / "mine.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return read_sweep(project, "mine")


# --- a sweep is data


@pytest.mark.parametrize(("name", "profile"), SCALES)
def test_every_shipped_sweep_is_sound_at_every_scale_and_shares_what_it_can(name: str, profile: str | None) -> None:
    sweep = read_sweep(PROJECT, name, profile)
    points = expand(PROJECT, sweep)
    assert len(points) == len(sweep.settings) * max(1, len(sweep.seeds)) > 1
    assert len({point.key for point in points}) == len(points)
    if sweep.first == "shard":
        assert {point.shared for point in points} == {None}
    else:
        assert "encode" in points[0].shared.only and "report" not in points[0].shared.only


def test_seeds_alone_are_a_sweep_of_the_params_as_they_are(project: Path) -> None:
    points = expand(project, written(project, {"from": "shard", "profile": "smoke", "seeds": [0, 3]}))
    assert [(dict(point.setting), point.values["compute"]["seed"]) for point in points] == [({}, 0), ({}, 3)]
    assert [point.label for point in points] == ["seed 0", "seed 3"]


def test_every_shipped_sweep_has_a_deployment() -> None:
    assert {path.stem for path in (PROJECT / SWEEPS).glob("*.yaml")} == set(SHIPPED)
    listed = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    deployed = {one["name"]: one["parameters"] for one in listed if one["entrypoint"] == "flows/sweep.py:sweep"}
    assert deployed.keys() == set(SHIPPED)
    for name, parameters in deployed.items():
        assert sweep.validate_parameters(parameters) == parameters and parameters["name"] == name


def test_the_sweep_of_data_sets_shares_the_chosen_set_and_all_before_it_for_each_seed() -> None:
    points = expand(PROJECT, read_sweep(PROJECT, "sft"))
    assert [(point.setting["sft.data"], point.seed) for point in points] == [
        (data, seed) for data in ("encoded", "encoded-sft") for seed in range(5)
    ]
    for point in points:
        assert {"encode@sft", "evaluate@grown"} <= set(point.shared.only)
        assert not {"sft@grown", "evaluate@sft-grown"} & set(point.shared.only)
        assert ("encode@sft" in point.only) == (point.setting["sft.data"] == "encoded-sft")


def test_a_sweep_over_data_sets_changes_the_stages_that_read_a_set(project: Path) -> None:
    sets = [{"sft": {"train_samples": count}} for count in (8, 16)]
    points = expand(project, written(project, {"from": "shard", "profile": "sft", "grid": {"data.sets": sets}}))
    assert len({point.key for point in points}) == 2


def test_a_grid_is_every_combination_once_and_each_with_every_seed(project: Path) -> None:
    grid = {"finetune.steps": [4, 8], "finetune.learning_rate": [1e-4, 2e-4]}
    points = expand(project, written(project, {"from": "finetune", "profile": "smoke", "grid": grid, "seeds": [5, 6]}))
    seen = [(*point.setting.values(), point.seed) for point in points]
    assert seen == [(steps, rate, seed) for steps in (4, 8) for rate in (1e-4, 2e-4) for seed in (5, 6)]
    assert all(point.values["finetune"]["steps"] == point.setting["finetune.steps"] for point in points)
    assert all(point.values["compute"]["seed"] == point.seed == point.shared.seed for point in points)
    assert len({point.shared.key for point in points}) == 2  # what comes before is computed once for each seed


def test_listed_points_and_a_profiles_own_values_are_taken_as_they_are(project: Path) -> None:
    listed = [{"finetune.steps": 4}, {"finetune.steps": 8, "finetune.warmup_steps": 1}]
    sweep = {"from": "finetune", "points": [{"finetune.steps": 200}], "profiles": {"smoke": {"points": listed}}}
    own = written(project, sweep)
    assert [dict(one) for one in own.settings] == [{"finetune.steps": 200}] and own.title == "mine"
    other = read_sweep(project, "mine", "smoke")
    assert [dict(one) for one in other.settings] == listed
    assert other.title == "mine@smoke"  # beside the table of the sweep's own profile


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": {"prune.depth": [[3]]}}, "prune.depths"),
        ({"grid": {"prune.depths": [[3], [9]]}}, "below grow.depth"),
        ({"grid": {"prune.depths": [3]}}, "must be list"),
        ({"grid": {"prune.depths": [3], "finetune.steps": 5}}, r"grid.finetune.steps is 5 \(int\): it must be list"),
        ({"grid": {"prune.depths": []}}, "grid.prune.depths is .* at least one value"),
        ({"grid": {}}, "grid is {}: it is empty"),
        ({"grid": {"prune.depths": [[3], [3]]}}, "there twice"),
        ({"grid": {"compute.seed": [1, 2]}}, "name seeds"),
        ({"grid": {"workflow.retries": [0, 1]}}, "changes no stage"),
        ({"grid": {"train.steps": [8, 9]}}, "changes train, which comes before prune"),
        ({"from": "prunes"}, "must be one of shard, "),
        ({"from": None}, "from is missing"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": [1, "2"]}, r"seeds is '2' \(str\): it must be int"),
        ({"points": [{"prune.depths": [3]}]}, "either a grid or points"),
        ({"grid": None, "points": [{}]}, "each must set at least one key"),
        ({"score": "best"}, "best_of"),
        ({"until": "report"}, "must be list of str or null"),
        ({"models": []}, "models is .*: it is empty"),
        ({"until": ["evaluate@finetuned-9"]}, "it must be one of shard, "),
        ({"until": ["evaluate@grown"]}, "does not need prune"),
        ({"profile": "smok"}, "smoke"),
        ({"sedes": [1]}, "'seeds'"),
        ({"cluster": {"gpu": 1}}, "'cluster.gpus'"),
        ({"cluster": {"gpus": -1}}, "from 0 on"),
        ({"cluster": {"cpus": 1.5}}, "cluster.cpus is 1.5"),
        ({"cluster": {"minutes": 1}}, "from 5 on"),
        ({"cluster": {"lost_seconds": 1}}, "from 5 on"),
        ({"cluster": {"pool": 3}}, "must be str or null"),
        ({"cluster": {"clone": 1}}, "must be bool"),
        ({"profiles": {"smoke": {"grids": {}}}}, "'profiles.smoke.grid'"),
        ({"profiles": {"smoke": {"cluster": {"minutes": 1}}}}, "profiles.smoke.cluster.minutes is 1"),
    ],
)
def test_a_bad_name_or_value_stops_with_one_line_before_anything_is_written(
    project: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        expand(project, written(project, DEPTHS | changes))
    assert "\n" not in str(error.value)
    assert not (project / "runs").exists() and not (project / ".sana15").exists()


def test_an_unknown_sweep_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="growth-strategy"):
        read_sweep(PROJECT, "growth")


def test_shared_stages_are_those_that_no_point_changes_directly_or_through_others(project: Path) -> None:
    shared = set(shared_stages(project, written(project, DEPTHS)))
    assert {"shard", "train", "importance", "judge", "evaluate@grown"} <= shared
    # the controls are cut to prune.depths as well
    assert not shared & {"prune@3", "finetune@3", "evaluate@pruned-3", "controls", "report"}
    beside = {"from": "finetune", "profile": "smoke", "grid": {"judge.steps": [4, 8]}}
    shared = set(shared_stages(project, written(project, beside)))
    assert "prune@3" in shared and not shared & {"judge", "evaluate@grown", "finetune@3"}


def test_a_sweep_runs_no_stage_beyond_those_it_goes_until(project: Path) -> None:
    sweep = {"from": "train", "until": ["evaluate@grown"], "grid": {"train.steps": [4, 8]}, "profile": "smoke"}
    one, two = expand(project, written(project, sweep))
    only = {
        "shard",
        "autoencoder",
        "text_encoder",
        "encode",
        "pretrain",
        "grow",
        "train",
        "scorer",
        "judge",
        "evaluate@grown",
    }
    only |= {"latency"}  # which the table shows
    assert set(one.only) == set(two.only) == only
    assert set(one.shared.only) == only - {"train", "evaluate@grown"}
    whole = expand(project, written(project, {name: value for name, value in sweep.items() if name != "until"}))
    assert whole[0].only is None and whole[0].key != one.key


def test_a_sweep_goes_until_all_items_of_a_stage_that_it_names_by_its_stem(project: Path) -> None:
    points = expand(project, written(project, DEPTHS | {"until": ["prune"]}))
    last = [[stage for stage in point.only if stage.startswith(("prune", "finetune"))] for point in points]
    assert last == [["prune@3"], ["prune@2"]]


# --- a point's key


def test_a_key_depends_on_what_the_point_is_made_of_and_on_nothing_else(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(**changes: Any) -> list[str]:
        return [point.key for point in expand(project, written(project, DEPTHS | changes))]

    three, two = keys()
    assert keys(grid={"prune.depths": [[2], [3], [1]]})[:2] == [two, three]  # the same points in another sweep
    assert keys(models=["grown"], cluster={"gpus": 8}) == [three, two]
    assert not set(keys(seeds=[1])) & {three, two}
    assert not set(keys(profile=None)) & {three, two}
    monkeypatch.setattr("flows.sweeps.points.code_digest", lambda stage: f"another {stage}")
    assert not set(keys()) & {three, two}


def test_a_key_follows_the_users_own_files(project: Path) -> None:
    pictures = project / "pictures"
    pictures.mkdir()
    own = PUBLISHED_DETECTOR | {"shard.source": "folder", "shard.path": "pictures"}
    listed = [own | {"shard.max_pixels": pixels} for pixels in (8, 9)]
    sweep = written(project, {"from": "shard", "profile": "smoke", "points": listed})
    before = [point.key for point in expand(project, sweep)]
    assert [point.key for point in expand(project, sweep)] == before
    (pictures / "cat.jpg").touch()
    assert not set(before) & {point.key for point in expand(project, sweep)}


def test_the_run_of_shared_stages_is_no_point_of_the_same_params(project: Path) -> None:
    steps = merged_params(project, "smoke", {})["finetune"]["steps"]
    sweep = {"from": "finetune", "profile": "smoke", "grid": {"finetune.steps": [steps]}}
    (point,) = expand(project, written(project, sweep))
    assert point.values == point.shared.values and point.key != point.shared.key


# --- following points


class Pretended:
    """A place where points end at once, as told: done, failed with a reason, or lost so many times before."""

    def __init__(self, room: int = 9, failing: str = "", lost: int = 0) -> None:
        self.most, self.failing, self.lost = room, failing, lost
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.running: dict[str, int] = {}

    def find_run(self, point: Point) -> str | None:
        return point.key if point.key in self.running else None

    def has_room(self) -> bool:
        return len(self.running) < self.most

    def submit(self, point: Point) -> str:
        assert point.key not in self.running
        self.running[point.key] = 2
        self.started.append(point.label)
        return point.key

    def state(self, point: Point, handle: str) -> PointState:
        assert len(self.running) <= self.most
        self.running[handle] -= 1
        if self.running[handle]:
            return PointState("running")
        del self.running[handle]
        if self.lost:
            self.lost -= 1
            return PointState("lost", "gone")
        reason = "no memory" if point.label == self.failing else ""
        write_json(point.folder / OUTCOME_FILE, {"reason": reason, "seconds": 1.0, "models": []})
        return PointState("failed", reason) if reason else PointState("done")

    def cancel(self, handles: list[str]) -> None:
        self.cancelled += handles


@pytest.fixture
def points(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Four points that share stages; their folders are not written, and nobody waits for them."""
    monkeypatch.setattr(
        following, "prepare", lambda _project, point: (point.folder / OUTCOME_FILE).unlink(missing_ok=True)
    )
    monkeypatch.setattr(following, "POLL_SECONDS", 0)
    rates = {"finetune.learning_rate": [1e-4, 2e-4, 3e-4, 4e-4]}
    return expand(project, written(project, {"from": "finetune", "profile": "smoke", "grid": rates}))


def untold(_point: Point, _state: PointState) -> None:
    """Nobody listens."""


def labels(points: list[Point]) -> list[str]:
    return [point.label for point in points]


def test_shared_stages_run_first_and_then_each_point_once(project: Path, points: list[Point]) -> None:
    place = Pretended(room=2)
    states = run_points(project, points, place, untold)
    assert place.started == [points[0].shared.label, *labels(points)]
    assert {state.phase for state in states.values()} == {"done"}


def test_a_second_start_runs_only_what_failed_and_what_is_new(project: Path, points: list[Point]) -> None:
    run_points(project, points[:3], Pretended(failing=points[1].label), untold)
    again = Pretended()
    states = run_points(project, points, again, untold)
    assert again.started == [points[1].label, points[3].label]
    assert {state.phase for state in states.values()} == {"done"}
    nothing = Pretended()
    run_points(project, points, nothing, untold)
    assert nothing.started == []


def test_a_failing_point_stops_no_other_and_the_sweep_fails_with_its_reason(project: Path, points: list[Point]) -> None:
    place = Pretended(failing=points[1].label)
    states = run_points(project, points, place, untold)
    assert [states[point.key].phase for point in points] == ["done", "failed", "done", "done"]
    with pytest.raises(FlowFailed, match=r"learning_rate=0.0002: no memory \(1 of 4 points failed\)"):
        raise_failures(points, states)


def test_without_its_shared_stages_no_point_runs(project: Path, points: list[Point]) -> None:
    place = Pretended(failing=points[0].shared.label)
    states = run_points(project, points, place, untold)
    assert place.started == [points[0].shared.label]
    assert {state.reason for state in states.values()} == {"shared stages, seed 0: no memory"}


def test_a_point_that_is_under_way_is_followed_and_not_started_again(project: Path, points: list[Point]) -> None:
    place = Pretended()
    place.running[points[2].key] = 5
    states = follow(project, points, place, untold)
    assert points[2].label not in place.started and states[points[2].key].phase == "done"


@pytest.mark.parametrize(("lost", "phase"), [(1, "done"), (2, "failed")])
def test_a_point_that_is_lost_is_started_once_more(project: Path, points: list[Point], lost: int, phase: str) -> None:
    place = Pretended(lost=lost)
    told: list[PointState] = []
    states = follow(project, points[:1], place, lambda _point, state: told.append(state))
    assert len(place.started) == 2 and states[points[0].key].phase == phase
    assert PointState("queued", "lost: gone") in told
    assert states[points[0].key].reason == ("lost 2 times: gone" if phase == "failed" else "")


def test_what_runs_is_cancelled_when_the_sweep_is_stopped(project: Path, points: list[Point]) -> None:
    place = Pretended(room=2)

    def stopped(_point: Point, _state: PointState) -> None:
        if len(place.started) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(project, points, place, stopped)
    assert place.cancelled == [point.key for point in points[:2]]


def test_an_edit_while_a_sweep_runs_reaches_no_point_of_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0)
    code = project / "tasks/mine.py"
    code.parent.mkdir()
    code.write_text("old")
    rates = {"finetune.learning_rate": [1e-4, 2e-4]}
    points = expand(project, written(project, {"from": "finetune", "profile": "smoke", "grid": rates}))
    place = Pretended(room=1, lost=1)
    run_points(project, points, place, lambda _point, _state: code.write_text("new") and None)
    assert len(place.started) == 4  # what is lost and started again is of the old code too
    assert [(point.folder / "tasks/mine.py").read_text() for point in points] == ["old", "old"]


def test_the_time_in_which_nobody_could_be_heard_is_no_silence() -> None:
    silence = Silence()
    assert silence.seconds("run", "one") == 0
    silence.subtract(60)
    assert silence.seconds("run", "one") < -50
    assert silence.seconds("run", "another") == 0


# --- processes of this machine

SLEEPS = "import time; time.sleep(3000)"


def test_no_two_processes_share_a_gpu_and_it_is_free_when_all_that_use_it_are_dead(tmp_path: Path) -> None:
    first, second = lease(["0", "1"], tmp_path), lease(["0", "1"], tmp_path)
    assert (first[0], second[0]) == ("0", "1") and lease(["0", "1"], tmp_path) is None
    # the holder's child has inherited the lease, as a stage has its flow's
    held = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}], pass_fds=[{second[1]}])"
    holder = subprocess.Popen([sys.executable, "-c", held], pass_fds=[second[1]], start_new_session=True)
    children = f"/proc/{holder.pid}/task/{holder.pid}/children"
    wait_for(lambda: Path(children).read_text().strip(), "the child")
    child = int(Path(children).read_text())
    os.close(second[1])
    os.kill(holder.pid, 9)
    holder.wait()
    assert lease(["0", "1"], tmp_path) is None
    os.kill(child, 9)
    wait_for(lambda: lease(["0", "1"], tmp_path), "the lease")
    os.close(first[1])


@pytest.fixture
def local(points: list[Point], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalProcesses]:
    """Two fake GPUs for three points, whose processes note their GPU and wait for a file."""
    module = "import os, time, pathlib; from tasks.system.file_locks import exclusive_lock; from pathlib import Path\n"
    module += "with exclusive_lock(Path('.sana15/point/lock'), 'held'):\n"
    module += "    Path('gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    module += "    while not Path('end').exists(): time.sleep(0.05)\n"
    module += "    exec(Path('end').read_text())\n"
    for point in points:
        point.folder.mkdir(parents=True)
        (point.folder / "pretended.py").write_text(module)
        (point.folder / OUTCOME_FILE).parent.mkdir(parents=True)
    monkeypatch.setattr("flows.places.gpu_leases.FOLDER", tmp_path / "gpus")
    monkeypatch.setattr("flows.places.local_processes.lease", lambda gpus: lease(gpus, tmp_path / "gpus"))
    monkeypatch.setattr("flows.sweeps.point_process.MODULE", "pretended")
    monkeypatch.setattr(
        "flows.places.local_processes.point_environment", lambda _folder, elsewhere: {"PYTHONPATH": str(PROJECT)}
    )
    place = LocalProcesses(3, ["0", "1"])
    yield place
    place.cancel(list(place._processes))


def test_points_have_a_gpu_each_and_no_more_run_than_there_are(local: LocalProcesses, points: list[Point]) -> None:
    one, two = (local.submit(point) for point in points[:2])
    assert not local.has_room() and local.submit(points[2]) is None
    wait_for(lambda: all((point.folder / "gpu").read_text() for point in points[:2]), "two points to begin")
    assert [(point.folder / "gpu").read_text() for point in points[:2]] == ["0", "1"]
    wait_for(lambda: local.find_run(points[0]), "the point's lock")
    (points[0].folder / "end").write_text("raise SystemExit('out of memory')")
    wait_for(lambda: local.state(points[0], one).phase != "running", "the point to fail")
    assert local.state(points[0], one) == PointState("failed", "ended by exit code 1: out of memory")
    assert local.state(points[1], two).phase == "running"
    assert local.has_room() and local.submit(points[2]) is not None
    wait_for((points[2].folder / "gpu").read_text, "the third point to begin")
    assert (points[2].folder / "gpu").read_text() == "0"


def test_what_another_process_runs_is_followed_by_its_lock_and_lost_when_it_dies(
    local: LocalProcesses, points: list[Point]
) -> None:
    handle = local.submit(points[0])
    wait_for(lambda: local.find_run(points[0]), "the point's lock")
    other = LocalProcesses(3, [])
    found = other.find_run(points[0])
    assert other.state(points[0], found).phase == "running"
    local.cancel([handle])
    assert other.state(points[0], found).phase == "lost"
    assert local.state(points[0], handle) == PointState("failed", "ended by SIGTERM: it said nothing")


def test_a_point_elsewhere_is_told_of_no_server_that_only_this_machine_can_reach_nor_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "of that server")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "of the sweep")
    access = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    here = point_environment(tmp_path, elsewhere=False)
    assert [here[name] for name in access] == ["http://127.0.0.1:4200/api", "of that server"]
    own = point_environment(tmp_path, elsewhere=True)
    assert not {*access, "PREFECT_SERVER_API_AUTH_STRING", "PREFECT__FLOW_RUN_ID"} & own.keys()
    monkeypatch.setenv("PREFECT_API_URL", "http://head-node:4200/api")
    away = point_environment(tmp_path, elsewhere=True)
    assert [away[name] for name in access] == ["http://head-node:4200/api", "of that server"]


# --- the table


def row(name: str, seed: int, score: float, parameters: int, seconds: float | None) -> Row:
    return Row(
        f"{name}{seed}",
        {"x": name},
        seed,
        "done",
        "",
        "folder",
        "grown",
        1,
        4,
        parameters,
        0.5,
        score,
        score - 0.1,
        score + 0.1,
        seconds,
    )


def test_a_sweeps_table_for_people_has_few_digits_and_its_scorers_name() -> None:
    (one,) = settings_of([replace(row("large", 0, 0.74195, 3_204_112, 0.094414), scorer="matching")])
    assert readable(one) == {
        "setting": "x=large",
        "model": "grown",
        "best of": "1",
        "seeds": "1",
        "parameters": "3.20 M",
        "held-out loss": "0.500",
        "Matching [95 %]": "0.742 [0.642, 0.842]",
        "seconds": "0.0944",
        "": "best, Pareto set",
    }


def test_the_best_and_the_pareto_set_are_by_score_parameters_and_seconds() -> None:
    rows = [
        row("large", 0, 0.8, 80, 2.0),
        row("slow", 0, 0.7, 80, 3.0),  # worse than large in all
        row("quick", 0, 0.7, 80, 1.0),
        row("small", 0, 0.5, 20, 1.0),
        row("untimed", 0, 0.5, 30, None),  # worse than small in what can be compared
        row("equal", 0, 0.8, 80, 2.0),
    ]
    settings = settings_of(rows)
    assert [one.label for one in settings if one.pareto] == ["x=large", "x=quick", "x=small", "x=equal"]
    assert [one.label for one in settings if one.best] == ["x=large"]


def test_intervals_are_over_seeds_and_of_one_seed_over_prompts() -> None:
    scores = [0.5, 0.6, 0.65, 0.7]
    (several,) = settings_of([row("a", seed, score, 10, None) for seed, score in enumerate(scores)])
    (single,) = settings_of([row("a", 0, 0.5, 10, None)])
    assert (several.seeds, several.score) == (4, pytest.approx(0.6125))
    # t(0.975, 3) = 3.182, by the table in any textbook
    half = 3.182 * np.std(scores, ddof=1) / 2
    assert (several.low, several.high) == pytest.approx((0.6125 - half, 0.6125 + half), abs=1e-4)
    assert (single.low, single.high) == (pytest.approx(0.4), pytest.approx(0.6))


def test_the_table_has_the_models_that_the_sweep_asks_for_and_a_line_for_what_failed(
    points: list[Point], tmp_path: Path
) -> None:
    sweep = Sweep("mine", None, "finetune", tuple(point.setting for point in points), (), ("finetuned-*",), "best_of")
    scored = {"overall": 0.5, "low": 0.4, "high": 0.6}
    best = {"1": scored, "4": scored | {"overall": 0.7}}
    common = {"depth": 2, "parameters": 10, "heldout_loss": 0.3, "scorer": "geneval", "score": scored, "best_of": best}
    models = [{"name": name, **common, "seconds_per_picture": 0.25} for name in ("grown", "finetuned-2")]
    write_json(points[0].folder / OUTCOME_FILE, {"reason": "", "seconds": 1.0, "models": models})
    rows = rows_of(sweep, points[0], PointState("done")) + rows_of(sweep, points[1], PointState("failed", "no memory"))
    write_table(tmp_path / "table.csv", sweep, rows, settings_of(rows))
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["finetune.learning_rate"] for line in lines] == ["0.0001", "0.0001", "0.0002"]
    told = [(line["model"], line["pictures"], line["score"], line["seconds"], line["best"]) for line in lines[:2]]
    assert told == [("finetuned-2", "1", "0.5", "0.25", "False"), ("finetuned-2", "4", "0.7", "1.0", "True")]
    assert (lines[2]["state"], lines[2]["reason"], lines[2]["score"]) == ("failed", "no memory", "")

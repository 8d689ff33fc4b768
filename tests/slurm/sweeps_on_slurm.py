"""Sweeps on a real Slurm: `make test-slurm`. `make test` does not look for this file, since few machines have Slurm."""

import csv
import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from cluster import SlurmCluster, wait_for

from flows.places.slurm_jobs import SlurmJobs
from flows.sweeps.place_interface import PointState
from flows.sweeps.point_folder import LOG_FILE, OUTCOME_FILE
from flows.sweeps.points import Point
from flows.sweeps.sweep_file import Cluster
from tasks.params.params_files import PARAMS_FILE, PROFILES, read_yaml
from tasks.system.errors import UserError
from tasks.system.files import write_json
from tests.helpers.patience import PIPELINE_SECONDS
from tests.helpers.small_workspace import PROJECT
from tests.helpers.whole_pipeline import Clone, new_clone, new_origin

FINETUNE_STEPS = 400
"""So long that a fine-tune can be caught in the middle, with a checkpoint after every eighth step."""
TAG = "sana15 sweep test of nothing"


# --- jobs


@pytest.fixture
def slurm(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmJobs:
    """The cluster as the sweep sees it; its jobs run a module `pretended` of the point's folder."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setattr("flows.places.slurm_jobs.MODULE", "pretended")
    return SlurmJobs(Cluster(gpus=1, cpus=1, minutes=5), TAG)


def point_of(folder: Path, key: str, code: str) -> Point:
    """A point that runs this code."""
    (folder / OUTCOME_FILE).parent.mkdir(parents=True)
    (folder / "pretended.py").write_text(code)
    return Point(key, key, folder, {"compute": {"nodes": 1}}, {}, 0)


def phase_is(slurm: SlurmJobs, point: Point, job: str, phase: str) -> None:
    wait_for(lambda: slurm.state(point, job).phase == phase, f"job {job} to be {phase}")


SLEEPS = "import time\ntime.sleep(1200)"
LONG = """
import os, time
from flows.entry.terminal import exit_on_term
from flows.sweeps.point_program import RequeueOnNotice
exit_on_term()
requeue = RequeueOnNotice()
print("begun", os.environ.get("SLURM_RESTART_COUNT", 0), flush=True)
try:
    time.sleep(1200)
finally:
    print("saved", flush=True)
    requeue.requeue_if_noticed()
"""


def test_a_job_that_fails_is_told_with_its_state_exit_code_and_last_lines(slurm: SlurmJobs, tmp_path: Path) -> None:
    point = point_of(tmp_path, "fails", "import sys\nprint('one')\nprint('no memory', file=sys.stderr)\nsys.exit(3)")
    job = slurm.submit(point)
    phase_is(slurm, point, job, "failed")
    reason = slurm.state(point, job).reason
    assert reason == f"Slurm job {job} ended FAILED (reason NonZeroExitCode, exit 3:0): one / no memory"
    write_json(tmp_path / OUTCOME_FILE, {"reason": "what the point itself says", "seconds": 1.0, "models": []})
    assert slurm.state(point, job) == PointState("failed", "what the point itself says")
    assert slurm.find_run(point) is None


def test_a_job_is_found_by_its_points_key_and_cancelled_by_its_sweeps_tag(
    slurm: SlurmJobs, cluster: SlurmCluster, tmp_path: Path
) -> None:
    one, two = (point_of(tmp_path / name, name, SLEEPS) for name in ("one", "two"))
    other = SlurmJobs(Cluster(gpus=0, cpus=1), "another sweep")
    jobs = [slurm.submit(one), other.submit(two)]
    assert [slurm.find_run(one), slurm.find_run(two)] == jobs
    phase_is(slurm, one, jobs[0], "running")
    slurm.cancel_all()
    phase_is(slurm, one, jobs[0], "failed")
    assert "CANCELLED" in slurm.state(one, jobs[0]).reason and slurm.find_run(one) is None
    assert other.state(two, jobs[1]).phase == "running"
    other.cancel([jobs[1]])
    phase_is(other, two, jobs[1], "failed")
    assert other.state(two, "999999").phase == "lost"


def test_a_job_whose_time_is_up_ends_and_goes_back_into_the_queue(
    slurm: SlurmJobs, cluster: SlurmCluster, tmp_path: Path
) -> None:
    point = point_of(tmp_path, "long", LONG)
    job = slurm.submit(point)
    log = tmp_path / LOG_FILE
    wait_for(lambda: log.exists() and "begun 0" in log.read_text(), "the job to begin")
    # as Slurm does some time before the limit, by its coarse clock
    cluster.ask("scancel", "--signal=USR1", "--batch", job)
    phase_is(slurm, point, job, "queued")
    assert slurm.find_run(point) == job
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: "begun 1" in log.read_text(), "the job to begin again")
    assert log.read_text().index("saved") < log.read_text().index("begun 1")
    slurm.cancel([job])
    phase_is(slurm, point, job, "failed")


def test_what_a_completed_job_wrote_may_come_late(
    slurm: SlurmJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = point_of(tmp_path, "silent", "")
    job = slurm.submit(point)
    wait_for(lambda: slurm._job_states().get(job) == "COMPLETED", "the job to end")
    assert slurm.state(point, job) == PointState("running")
    write_json(tmp_path / OUTCOME_FILE, {"reason": "", "seconds": 1.0, "models": []})
    assert slurm.state(point, job) == PointState("done")
    (tmp_path / OUTCOME_FILE).unlink()
    monkeypatch.setattr("flows.places.slurm_jobs.SHARED_FOLDER_DELAY_SECONDS", 0)
    assert slurm.state(point, job).phase == "failed"


def test_what_slurm_refuses_is_said_in_its_own_words(slurm: SlurmJobs, tmp_path: Path) -> None:
    greedy = SlurmJobs(Cluster(gpus=1, partition="nowhere"), TAG)
    with pytest.raises(UserError, match=r"sbatch failed: .*partition"):
        greedy.submit(point_of(tmp_path, "greedy", SLEEPS))


# --- a whole sweep


@pytest.fixture(scope="module")
def clone(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose smoke profile has a long fine-tune, and whose environment has the cluster."""
    origin = new_origin(tmp_path_factory.mktemp("origin"), read_yaml(PROJECT / PARAMS_FILE))
    clone = new_clone(origin, tmp_path_factory.mktemp("clone"))
    set_finetune(clone, FINETUNE_STEPS)
    clone.environment.update(cluster.environment)
    return clone


def set_finetune(clone: Clone, steps: int) -> None:
    """Change the smoke profile in the clone."""
    path = clone.root / PROFILES / "smoke.yaml"
    values = read_yaml(path)
    values["finetune"] |= {"steps": steps, "evaluate_every": steps}
    values["workflow"] = {"baselines": ["grown"]}
    path.write_text(yaml.safe_dump(values))


@pytest.fixture
def flows() -> Iterator[list["Flow"]]:
    """The flows of a test, of which none outlives it."""
    begun: list[Flow] = []
    yield begun
    for flow in begun:
        if flow.process.poll() is None:
            flow.kill()


class Flow:
    """The sweep's flow in a process of its own, with its output in a file."""

    def __init__(self, clone: Clone, log: Path) -> None:
        self.log = log
        self.process = clone.begin_sweep("slurm", log)

    def says(self, words: str) -> bool:
        """Whether it has printed this; fails if it has ended before."""
        text = self.log.read_text()
        assert words in text or self.process.poll() is None, text
        return words in text

    def kill(self) -> None:
        """KILL it and its temporary Prefect server, so that no one of them can tell anybody anything."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def folders(clone: Clone) -> dict[str, Path]:
    """The folders of the points by their labels."""
    found = (clone.root / "runs/points").glob("*/.sana15/point/order.json")
    return {json.loads(path.read_text())["label"]: path.parents[2] for path in found}


def seconds_of(record: str) -> tuple[str, float, float]:
    """Key, start and end of a run, from a line of Slurm's own record of completed jobs."""
    facts = dict(re.findall(r"(\w+)=(\S+)", record))
    start, end = (datetime.fromisoformat(facts[name]).timestamp() for name in ("StartTime", "EndTime"))
    return facts["Name"], start, end


def test_a_sweep_survives_a_requeued_job_and_a_killed_flow_and_runs_no_point_twice(
    cluster: SlurmCluster, clone: Clone, tmp_path: Path, flows: list[Flow]
) -> None:
    flows.append(first := Flow(clone, tmp_path / "first.log"))
    wait_for(
        lambda: first.says("shared stages, seed 0") and len(folders(clone)) == 4,
        "all points to be queued",
        PIPELINE_SECONDS,
    )
    points = {label: folder for label, folder in folders(clone).items() if label.startswith("prune.depths")}
    keys = {folder.name for folder in points.values()}
    wait_for(lambda: keys <= {name for name, _ in cluster.jobs().values()}, "the jobs")
    jobs = {name: job for job, (name, _) in cluster.jobs().items() if name in keys}

    def states() -> list[str]:
        return sorted(state for name, state in cluster.jobs().values() if name in keys)

    wait_for(lambda: states() == ["PENDING", "RUNNING", "RUNNING"], "two of three points to get the two GPUs")

    stopped = points["prune.depths=[3]"]
    state = stopped / ".sana15/state/finetune@3"
    wait_for(lambda: any(state.glob("*/step-*")), "a fine-tune's middle", PIPELINE_SECONDS)
    cluster.ask("scontrol", "requeue", jobs[stopped.name])
    first.kill()
    flows.append(second := Flow(clone, tmp_path / "second.log"))
    wait_for(lambda: second.says("points are done"), "the flow to begin again", PIPELINE_SECONDS)
    wait_for(lambda: cluster.jobs()[jobs[stopped.name]][1] == "PENDING", "the job to be back in the queue")
    cluster.ask("scontrol", "update", f"JobId={jobs[stopped.name]}", "StartTime=now")
    assert second.process.wait(PIPELINE_SECONDS) == 0, second.log.read_text()
    assert f"({stopped.name}): running" in second.log.read_text()

    assert {name: job for job, (name, _) in cluster.jobs().items() if name in keys} == jobs  # the very same jobs
    assert "finetune@3 | resuming after step" in (stopped / LOG_FILE).read_text()
    runs = [seconds_of(line) for line in (cluster.folder / "log/jobcomp.txt").read_text().splitlines()]
    for key in keys:
        times = sorted((start, end) for name, start, end in runs if name == key)
        assert len(times) == (2 if key == stopped.name else 1), runs
        assert all(before[1] <= after[0] for before, after in pairwise(times)), runs

    table = list(csv.DictReader((clone.root / "results/sweeps/prune-depth@smoke/table.csv").read_text().splitlines()))
    assert [(line["model"], line["state"]) for line in table] == [(f"finetuned-{depth}", "done") for depth in (3, 2, 1)]
    assert all(line["score"] and line["heldout_loss"] and line["parameters"] for line in table)


def test_cancelling_the_flow_cancels_its_jobs(
    cluster: SlurmCluster, clone: Clone, tmp_path: Path, flows: list[Flow]
) -> None:
    set_finetune(clone, 2 * FINETUNE_STEPS)
    before = set(cluster.jobs())
    flows.append(flow := Flow(clone, tmp_path / "cancelled.log"))
    wait_for(lambda: flow.says(": running"), "a job to run", PIPELINE_SECONDS)
    flow.process.send_signal(signal.SIGINT)
    assert flow.process.wait(PIPELINE_SECONDS) == 130, flow.log.read_text()
    new = set(cluster.jobs()) - before
    assert new
    wait_for(lambda: {cluster.jobs()[job][1] for job in new} == {"CANCELLED"}, "its jobs to be cancelled")

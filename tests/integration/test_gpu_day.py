"""The GPU day runs on a machine that has little; what fails in it is named, and what was measured is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.bare_machine import GPU_MACHINE, bare_environment
from tests.helpers.patience import wait_for

PROJECT = Path(__file__).parents[2]
BENCHMARKS = PROJECT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402
import goals  # noqa: E402
import gpu  # noqa: E402

ABSENT = ("diffusers", "webdataset", "bitsandbytes", "came_pytorch", "mlflow", "prefect", "dvc", "matplotlib")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the machine, in which the absent packages really are."""
    environment = bare_environment(tmp_path_factory.mktemp("site"), *GPU_MACHINE)
    absent = (*ABSENT, "kernels", "tasks", "flows")
    code = f"import importlib.util as u, torch, yaml; print([n for n in {absent} if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
    return environment


def test_every_part_reaches_its_last_row_on_a_machine_with_little_more_than_torch(
    bare: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    device = common.DEVICE
    rows = goals.read_rows(tmp_path / "out", device)
    assert [row["part"] for row in rows["gpu"]] == [part.name for part in gpu.PARTS]
    assert not [row for row in rows["gpu"] if row["problem"]]
    assert {row["part"]: row["rows"] for row in rows["gpu"]} == {name: rows[name] for name in rows if name != "gpu"}
    assert rows.keys() == {"gpu", *(part.name for part in gpu.PARTS)}
    assert not [
        row
        for row in rows["first_step"]
        if row["problem"] and row.get("import") not in ("diffusers", "webdataset", "tasks.generate")
    ]
    assert (rows["kernel_tests"][-1]["failed"], rows["kernel_tests"][-1]["passed"]) == (0, 8)
    problems = {row["optimizer"]: row["problem"] for row in rows["optimizer_step"] if "optimizer" in row}
    assert problems.pop("came-pytorch") == "came_pytorch is not installed"
    assert problems.pop("adamw8bit") == "bitsandbytes is not installed"
    assert set(problems.values()) == {None}
    for name in ("network", "network_compiled"):
        assert [row["side"] for row in rows[name]] == ["diffusers", "ours", "ours"]
        assert rows[name][0]["problem"] == "diffusers is not installed"
        assert all(row["ms"] > 0 for row in rows[name][1:])
    assert [row["run"] for row in rows["training_loop"]] == ["matrix product", "as a stage runs", "memory filled"]
    assert len(rows["training_memory"]) == 7
    assert [row["what"] for row in rows["stage_memory"]] == ["4.8B stage", "train of paper"]
    assert {row["problem"] for row in rows["stage_memory"]} <= {None, "not measured: no CUDA device"}
    assert rows["checkpoint_stall"][0]["bytes"] > 0 < rows["checkpoint_stall"][0]["copy_s"]
    assert [row["stage"] for row in rows["stages"]] == ["pretrain", "grow", "from pictures"]
    assert rows["stages"][2]["problem"] == "diffusers and webdataset not installed"
    assert all(row["heldout_loss"] == row["cpu_heldout_loss"] for row in rows["stages"][:2]) or device == "cuda"
    for name in ("linear_attention", "mix_feed_forward", "modulation"):
        assert rows[name] and not [row for row in rows[name] if row["problem"]]
    assert goals.table(tmp_path / "out", device) in done.stdout


def test_the_kernels_tests_are_collected_there_and_those_with_absent_peers_are_skipped_by_name(
    bare: dict[str, str], tmp_path: Path
) -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(PROJECT)]
    collected = subprocess.run(
        [*pytest_, "--collect-only", "tests/kernels"], env=bare, cwd=PROJECT, capture_output=True, text=True
    )
    assert collected.returncode == 0, collected.stdout[-2000:]
    peers = ["test_dynamic_map.py", "test_optimizers.py"]
    files = [f"tests/kernels/{name}" for name in peers]
    done = subprocess.run([*pytest_, "-rs", *files], env=bare, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert skips and all("could not import 'bitsandbytes" in line for line in skips)


def written(folder: Path, name: str, code: str) -> gpu.Part:
    """A part of a test's own."""
    (folder / f"{name}.py").write_text(code)
    return gpu.Part(name, 60)


def test_a_part_that_fails_is_named_and_one_that_takes_too_long_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    sleeps = "import subprocess, sys\nchild = subprocess.Popen(['sleep', '3000'])\n"
    sleeps += "open(sys.argv[1], 'w').write(str(child.pid))\nchild.wait()"
    slow = gpu.Part(written(tmp_path, "slow", sleeps).name, 60)
    failing = written(tmp_path, "failing", "import sys\nsys.exit('no kernel image')")
    fine = written(tmp_path, "fine", "")
    note = tmp_path / "child"
    monkeypatch.setattr(gpu, "TINY_SECONDS", 20)
    outcomes = list(gpu.run_all([slow, failing, fine], 60, [str(note)], tiny=True))
    assert [one.problem for one in outcomes] == ["ran out of its 20 s", "exit status 1: no kernel image", ""]
    wait_for(lambda: not psutil.pid_exists(int(note.read_text())), "its child to end")


def test_parts_for_which_no_time_is_left_are_named_and_not_begun(tmp_path: Path) -> None:
    outcomes = list(gpu.run_all(gpu.PARTS[:2], 0.1, [], tiny=False))
    assert {one.problem for one in outcomes} == {"not begun: no time was left"}


def test_a_row_is_on_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    results = common.Results("some", tmp_path / "new")
    for count in (1, 2):
        results.add({"row": count})
        content = json.loads(results.path.read_text())
        assert [row["row"] for row in content["rows"]] == list(range(1, count + 1))
        assert content["versions"]["torch"] and content["hardware"]
    assert os.listdir(results.path.parent) == [results.path.name]


def test_a_side_that_fails_while_it_is_timed_has_no_time_and_the_others_do(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def fails() -> None:
        calls.append(len(calls))
        if len(calls) > 4:
            raise RuntimeError("out of memory")

    assert common.timed_in_turns({"fails": fails, "fine": list}, rounds=3).keys() == {"fine"}
    assert "fails fails while it is timed: RuntimeError: out of memory" in capsys.readouterr().out


def test_no_kernel_test_is_no_success() -> None:
    row = {"test": "all", "passed": 0, "failed": 0, "exit_code": 5}
    assert goals.failed_tests({"kernel_tests": [row]}) is None
    assert goals.failed_tests({"kernel_tests": [row | {"passed": 3, "failed": 1, "exit_code": 1}]}) == 1


def test_a_goal_is_reached_missed_or_unmeasured() -> None:
    goal = goals.Goal("speed", goals.field("network", "times", pixels=512), 1.5)
    assert goal.line({}) == "| speed | unmeasured | at least 1.50 |  |"
    for times, word in ((1.49, "no"), (1.5, "yes")):
        row = {"pixels": 512, "times": times}
        assert goal.line({"network": [{"pixels": 1024, "times": 9.0}, row]}).endswith(
            f"| {times:.2f} | at least 1.50 | {word} |"
        )
    memory = goals.Goal("memory", goals.gigabytes("training_memory", "step"), 24, at_least=False, form=".1f")
    ran_out = {"what": "step", "limit_bytes": 24e9, "problem": "out of memory", "peak_bytes": None}
    assert memory.line({"training_memory": [ran_out]}) == "| memory | inf | at most 24.0 | no |"

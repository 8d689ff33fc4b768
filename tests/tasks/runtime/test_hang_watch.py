"""A process that hangs is killed by its watcher, which says why and keeps its stacks. One that moves is left alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.runtime.hang_rules import PULSE_LOST_SECONDS
from tasks.runtime.hang_watch import OFF_VARIABLE, place_in
from tasks.system.heartbeat import read_beats
from tasks.system.process_times import run_state
from tests.helpers.patience import PATIENCE_SECONDS, wait_for

PROJECT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what the watcher asks for")

LOOP = """
import ctypes, os, signal, sys, time
from pathlib import Path
from tasks.runtime.hang_rules import Limits
from tasks.runtime.hang_watch import watched_process
from tasks.system.progress import progress

def hold_the_lock():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second call never returns, and PyDLL keeps the GIL meanwhile
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)

def read_for_ever():
    os.mkfifo('pipe')
    open('pipe')

def use_the_processor(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

limits = Limits(still=float(sys.argv[1]), quiet=float(sys.argv[2]), look=0.1)
with watched_process('demo', Path('stacks'), limits), progress('demo', 100) as meter:
    for _ in range(40):
        time.sleep(0.02)
        meter.advance()
    print('steps are made', flush=True)
    exec(sys.argv[3])
print('ended', flush=True)
"""


def begun(folder: Path, then: str, still: float = 3.0, quiet: float = 1000.0) -> subprocess.Popen[str]:
    """A watched process that makes 40 steps and then does something else."""
    return subprocess.Popen(
        [sys.executable, "-c", LOOP, str(still), str(quiet), then],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != OFF_VARIABLE} | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process: subprocess.Popen[str]) -> str:
    """The last line of the errors of a process that its watcher kills."""
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -signal.SIGKILL, output + errors
    return errors.splitlines()[-1]


def stacks(folder: Path) -> str:
    """The stacks that the watcher has kept."""
    (found,) = (folder / "stacks").glob("*/rank-0.txt")
    return found.read_text()


def test_a_stopped_process_is_killed_and_said_to_be_stopped(tmp_path: Path) -> None:
    process = begun(tmp_path, "time.sleep(1000)")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("steps"):
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    line = last_line(process)
    assert line.startswith("demo: no step for ") and "it is stopped, as by SIGSTOP" in line
    assert "run the same command to resume" in line
    assert "<module>" in stacks(tmp_path)


def test_a_process_whose_lock_a_call_holds_is_killed_and_the_call_named(tmp_path: Path) -> None:
    line = last_line(begun(tmp_path, "hold_the_lock()", still=PULSE_LOST_SECONDS + 2))
    assert "a call holds Python's lock (GIL) at " in line and "in hold_the_lock" in line
    assert "in hold_the_lock" in stacks(tmp_path)


def test_a_read_that_never_returns_is_named(tmp_path: Path) -> None:
    line = last_line(begun(tmp_path, "read_for_ever()"))
    assert "it is at " in line and "in read_for_ever" in line


def test_a_loop_that_goes_on_without_steps_is_named_though_it_uses_the_processor(tmp_path: Path) -> None:
    assert "in use_the_processor" in last_line(begun(tmp_path, "use_the_processor(10000)", still=1.0))


def test_outside_of_steps_a_process_hangs_if_it_does_nothing_for_long(tmp_path: Path) -> None:
    pause = "from tasks.system.heartbeat import pause\nwith pause(): read_for_ever()"
    assert "in read_for_ever" in last_line(begun(tmp_path, pause, quiet=3.0))


@pytest.mark.parametrize(
    "then",
    (
        # each longer than the least limit, and all than the limit that follows from steps of .02 seconds
        "from tasks.system.heartbeat import pause\nwith pause(): time.sleep(5)",
        "with progress('first steps', 2) as inner: time.sleep(5)",
        "[(time.sleep(0.5), meter.advance()) for _ in range(10)]",
    ),
    ids=("pause", "a new loop whose pace is not known", "steps that are slower than before"),
)
def test_a_process_that_moves_or_works_between_steps_is_left_alone(tmp_path: Path, then: str) -> None:
    output, errors = begun(tmp_path, then).communicate(timeout=PATIENCE_SECONDS)
    assert output.splitlines()[-1] == "ended" and errors == ""


@contextmanager
def load(count: int, processor: int) -> Iterator[None]:
    """Have `count` processes use one processor for the block."""
    code = f"import os; os.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_load_of_eight_makes_no_process_hang(tmp_path: Path) -> None:
    """Each step needs .4 seconds of a processor that nine share, so it takes far longer than the limit of a second."""
    processor = min(os.sched_getaffinity(0))
    steps = "started = time.monotonic()\nfor _ in range(2): use_the_processor(0.4); meter.advance()\n"
    then = f"os.sched_setaffinity(0, {{{processor}}})\n{steps}print(time.monotonic() - started)"
    with load(8, processor):
        output, errors = begun(tmp_path, then, still=1.0).communicate(timeout=PATIENCE_SECONDS)
    assert output.splitlines()[-1] == "ended", errors
    assert float(output.splitlines()[-2]) / 2 > 1.0  # there was such a load


def test_the_watcher_and_its_records_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    process = begun(tmp_path, "time.sleep(1000)", still=500.0)
    assert process.stdout is not None and process.stderr is not None
    while not process.stdout.readline().startswith("steps"):
        assert process.poll() is None
    (watcher,) = (int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    arguments = Path(f"/proc/{watcher}/cmdline").read_text()
    records = Path(arguments.partition('"records": "')[2].partition('"')[0])
    assert records.is_dir()
    process.kill()
    assert process.stderr.read() == ""  # the watcher has the pipe too, and closes it when it ends
    wait_for(lambda: not records.exists(), "the records to be deleted")


RANKS = """
import os, time
from pathlib import Path
from tasks.runtime.hang_rules import Limits
from tasks.runtime.hang_watch import WatchJob, watched
from tasks.system.heartbeat import start_heartbeat
from tasks.system.progress import progress

Path('records').mkdir()
with watched(WatchJob('demo', 2, 'records', 'stacks', 'report.json', Limits(still=2.0, look=0.1))):
    ranks = []
    for rank in range(2):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            start_heartbeat(Path('records'), rank)
            with progress('demo', 10**9) as meter:
                while True:
                    time.sleep(0.02)
                    meter.advance()
    for rank in ranks:
        os.waitpid(rank, 0)
print('the ranks have ended')
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has started two ranks, which make steps under a watcher."""
    environment = {name: value for name, value in os.environ.items() if name != OFF_VARIABLE}
    process = subprocess.Popen(
        [sys.executable, "-c", RANKS],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(read_beats(tmp_path / "records")) == 2, "the ranks to begin")
    yield process
    process.kill()
    process.wait()


def test_a_stopped_rank_is_in_the_report_and_all_ranks_are_killed(tmp_path: Path, ranks: subprocess.Popen[str]) -> None:
    os.kill(read_beats(tmp_path / "records")[1].pid, signal.SIGSTOP)
    output, errors = ranks.communicate(timeout=PATIENCE_SECONDS)
    assert ranks.returncode == 0 and output.splitlines()[-1] == "the ranks have ended", errors
    line = json.loads((tmp_path / "report.json").read_text())["line"]
    assert line.startswith("rank 1 of 2 stands still: it is stopped, as by SIGSTOP; ")
    assert {path.name for path in tmp_path.glob("stacks/*/*")} == {"rank-0.txt", "rank-1.txt"}


def test_a_process_that_is_stopped_while_its_ranks_run_is_killed_with_them(
    tmp_path: Path, ranks: subprocess.Popen[str]
) -> None:
    pids = [beat.pid for beat in read_beats(tmp_path / "records").values()]
    ranks.send_signal(signal.SIGSTOP)
    line = last_line(ranks)
    assert line.startswith(f"demo: process {ranks.pid}, which started the ranks, is stopped, as by SIGSTOP; ")
    wait_for(lambda: not any(run_state(pid) for pid in pids), "the ranks to end")


def test_nothing_is_watched_where_the_variable_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), OFF_VARIABLE: "1"}
    code = [sys.executable, "-c", LOOP, "1.0", "1.0", "time.sleep(5)"]
    done = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.stdout.splitlines()[-1] == "ended", done.stderr


def test_the_place_is_the_innermost_line_of_the_main_thread() -> None:
    dump = (
        'Thread 0x1 (most recent call first):\n  File "/x/threading.py", line 1 in wait\n\n'
        f'Current thread 0x2 (most recent call first):\n  File "{PROJECT}/tasks/a.py", line 7 in read\n'
        '  File "/x/b.py", line 8 in main\n'
    )
    assert place_in(dump) == "tasks/a.py:7 in read"
    assert place_in("") == ""

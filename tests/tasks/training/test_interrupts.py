"""A signal stops one process at once, and several after the same step."""

import json
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from tasks.computing import ranks
from tasks.training import interrupts
from tasks.training.interrupts import MEET_SECONDS, AgreedStop, Interrupts
from tests.kernels.processes import run_processes

MOST = 10


def test_one_process_stops_after_the_step_in_which_the_signal_came() -> None:
    noted = Interrupts()
    stop = AgreedStop(noted, MOST)
    assert [stop.signum() for _ in range(5)] == [None] * 5
    noted.note(signal.SIGTERM, None)
    assert stop.signum() == signal.SIGTERM


def stop_by_a_signal_to_rank_1(folder: Path) -> None:
    """Make steps until the ranks agree to stop; each writes at which step that was."""
    noted = Interrupts()
    stop = AgreedStop(noted, MOST)
    for step in range(100):
        if ranks.rank() == 1 and step == 23:
            noted.note(signal.SIGINT, None)
        if stop.signum() == signal.SIGINT:
            break
    (folder / f"stopped-{ranks.rank()}").write_text(json.dumps(step))


def test_ranks_stop_after_the_same_step_when_the_signal_reached_one_of_them(tmp_path: Path) -> None:
    run_processes(2, tmp_path, stop_by_a_signal_to_rank_1)
    steps = [json.loads((tmp_path / f"stopped-{rank}").read_text()) for rank in range(2)]
    assert steps[0] == steps[1]
    assert 23 <= steps[0] < 23 + MOST


@pytest.mark.parametrize(("own", "other"), [(0.001, 0.002), (0.1, 0.4), (0.9, 0.3), (30.0, 1.0)])
def test_ranks_ask_each_other_every_few_seconds_or_ten_steps(
    own: float, other: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: list[float] = [0.0]
    made: list[float] = []
    asked: list[int] = []

    def gather(answer: list[float]) -> list[list[float]]:
        asked.append(len(made))
        return [answer, [0, other]]

    monkeypatch.setattr(interrupts.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "gather", gather)
    stop = AgreedStop(Interrupts(), MOST)
    for _ in range(100):
        clock[0] += own
        made.append(own)
        stop.signum()
    between = {after - before for before, after in pairwise(asked)}
    assert asked[0] == 1 and len(between) == 1
    (steps,) = between
    assert steps == (MOST if max(own, other) <= MEET_SECONDS / MOST else round(max(MEET_SECONDS / max(own, other), 1)))

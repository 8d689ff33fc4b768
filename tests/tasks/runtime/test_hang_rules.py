"""When a stage counts as hanging, and which of its ranks is the cause."""

import pytest

from tasks.runtime.hang_rules import KNOWN_STEPS, Limits, RankPace, Standing, causes, explanation, hangs
from tasks.system.heartbeat import OUTSIDE, PAUSED, Beat

LIMITS = Limits(still=45.0, multiple=2.5, quiet=1800.0)
BACKWARD = "torch/autograd/graph.py:865 in _engine_run_backward"
GATHER = "torch/distributed/distributed_c10d.py:3000 in all_gather"


def pace_of(seconds: float, loop: int = 1, steps: int = KNOWN_STEPS) -> RankPace:
    """A rank that has made steps of so many seconds each."""
    pace = RankPace(Beat(1, loop, 0, 0))
    for step in range(1, steps + 1):
        pace.look(Beat(1, loop, step, step), seconds, seconds, busy=True, stopped=False)
    return pace


def stand(pace: RankPace, seconds: float, busy: bool = False, share: float = 1.0, stopped: bool = False) -> RankPace:
    """Let a rank stand still; `share` of the time counts."""
    for _ in range(round(seconds)):
        pace.look(pace.beat._replace(pulse=pace.beat.pulse + 1), 1.0, share, busy, stopped)
    return pace


def at(pace: RankPace, loop: int) -> RankPace:
    """Move a rank to another loop."""
    pace.look(pace.beat._replace(loop=loop, steps=0), 1.0, 1.0, busy=True, stopped=False)
    return pace


@pytest.mark.parametrize(("step", "limit"), [(0.1, 45), (10.0, 45), (20.0, 50), (60.0, 150)])
def test_the_limit_is_two_and_a_half_steps_and_at_least_the_least_time(step: float, limit: int) -> None:
    assert not hangs([stand(pace_of(step), limit - 1)], LIMITS)
    assert hangs([stand(pace_of(step), limit)], LIMITS)


def test_before_its_pace_is_known_a_process_hangs_only_if_it_does_nothing_for_half_an_hour() -> None:
    assert not hangs([stand(pace_of(1.0, steps=KNOWN_STEPS - 1), 5000, busy=True)], LIMITS)
    assert not hangs([stand(pace_of(1.0, steps=KNOWN_STEPS - 1), 1799)], LIMITS)
    assert hangs([stand(pace_of(1.0, steps=KNOWN_STEPS - 1), 1800)], LIMITS)


def test_steps_that_were_made_before_the_first_look_make_the_pace_known() -> None:
    assert hangs([stand(RankPace(Beat(1, 1, KNOWN_STEPS, 0)), 45)], LIMITS)
    assert not hangs([stand(RankPace(Beat(1, 1, KNOWN_STEPS - 1, 0)), 45)], LIMITS)


def test_time_in_which_a_process_waits_for_a_processor_does_not_count() -> None:
    assert not hangs([stand(pace_of(1.0), 400, busy=True, share=0.1)], LIMITS)
    assert hangs([stand(pace_of(1.0), 451, busy=True, share=0.1)], LIMITS)


def test_a_wait_that_linux_adds_when_it_is_over_is_taken_off_what_has_counted() -> None:
    pace = stand(pace_of(1.0), 40)
    pace.look(pace.beat, 1.0, -30.0, busy=True, stopped=False)
    assert not hangs([stand(pace, 34)], LIMITS)
    assert hangs([stand(pace, 1)], LIMITS)


def test_a_step_in_ten_that_waits_for_all_ten_is_no_hang() -> None:
    pace = RankPace(Beat(1, 1, 0, 0))
    for step in range(1, 61):
        seconds = 100 if step % 10 == 0 else 1
        assert not hangs([stand(pace, seconds, busy=True)], LIMITS)
        pace.look(Beat(1, 1, step, pace.beat.pulse), 0.0, 0.0, busy=True, stopped=False)
    assert hangs([stand(pace, 251)], LIMITS)


def test_an_inner_loop_leaves_the_pace_of_the_outer_one_as_it_was() -> None:
    pace = pace_of(30.0)
    outer = pace.beat
    for step in range(1, 31):
        pace.look(outer._replace(loop=2, steps=step), 1.0, 1.0, busy=True, stopped=False)
    pace.look(outer, 1.0, 1.0, busy=True, stopped=False)
    assert pace.usual() == 30.0


def test_a_rank_that_waits_for_one_that_evaluates_is_no_hang() -> None:
    waiting, evaluating = stand(pace_of(1.0), 500), stand(at(pace_of(1.0), PAUSED), 500, busy=True)
    assert not hangs([waiting, evaluating], LIMITS)
    assert not hangs([waiting, stand(at(pace_of(1.0), PAUSED), 500)], LIMITS)  # it writes to a slow disk
    assert not hangs([waiting, stand(at(pace_of(1.0), OUTSIDE), 500, busy=True)], LIMITS)
    assert hangs([waiting, stand(at(pace_of(1.0), OUTSIDE), 500)], LIMITS)  # it has done its part, and waits


def test_one_rank_that_is_stopped_is_enough_wherever_it_is() -> None:
    stopped = stand(at(pace_of(1.0), PAUSED), 44, stopped=True)
    moving = pace_of(1.0)
    assert not hangs([moving, stopped], LIMITS)
    assert hangs([moving, stand(stopped, 1, stopped=True)], LIMITS)
    assert stand(stopped, 1).stopped == 0.0


def standing(rank: int, **changes: object) -> Standing:
    """A rank that waits for others, but for the changes."""
    values = {"seconds": 46.0, "usual": 0.25, "stopped": False, "has_pulse": True, "loop": 1, "steps": 30}
    return Standing(rank, **values | {"place": BACKWARD} | changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"stopped": True}, "it is stopped, as by SIGSTOP"),
        ({"has_pulse": False, "place": "a.py:1 in f"}, "a call holds Python's lock (GIL) at a.py:1 in f"),
        ({"steps": 29}, f"it is at {BACKWARD}"),
        ({"place": "tasks/data/encoded_samples.py:80 in read"}, "it is at tasks/data/encoded_samples.py:80 in read"),
    ],
)
def test_the_rank_that_stands_still_by_itself_is_named_with_its_reason(changes: dict[str, object], why: str) -> None:
    ranks = [standing(0), standing(1, **changes), standing(2, place=GATHER)]
    assert [one.rank for one in causes(ranks)] == [1]
    expected = f"rank 1 of 3 stands still: {why}; no step for 46 s (one took 0.25 s); all ranks were killed; "
    assert explanation(ranks, 3, "stacks") == f"{expected}stacks are in stacks: run the same command to resume"


def test_a_stopped_rank_is_named_before_one_that_is_behind() -> None:
    assert [one.rank for one in causes([standing(0, steps=29), standing(1, stopped=True)])] == [1]


def test_where_all_wait_for_each_other_no_rank_is_blamed_and_all_places_are_said() -> None:
    ranks = [standing(0), standing(1, place=GATHER)]
    assert causes(ranks) == []
    assert f"no rank stands apart: rank 0 it is at {BACKWARD}; rank 1 it is at {GATHER};" in explanation(ranks, 2, "s")

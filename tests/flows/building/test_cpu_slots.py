"""A main stage computes alone, branch stages share the machine, and none overtakes a main stage that waits."""

import threading
from concurrent.futures import ThreadPoolExecutor

from flows.building.cpu_slots import CpuSlots
from tests.helpers.patience import PATIENCE_SECONDS, wait_for


def test_a_main_stage_runs_alone_and_branches_share_the_places() -> None:
    slots, lock = CpuSlots(3), threading.Lock()
    running: dict[str, int] = {"main": 0, "branch": 0}
    most = {"main": 0, "branch": 0}
    together = threading.Barrier(3)  # of the first three branches: none ends before all of them run

    def stage(number: int) -> None:
        kind = "main" if number % 4 == 0 else "branch"
        with slots.take(branch=kind == "branch"):
            with lock:
                running[kind] += 1
                assert running["main"] <= 1
                assert not (running["main"] and running["branch"])
                most[kind] = max(most[kind], running[kind])
            if kind == "branch" and number < 4:
                together.wait(PATIENCE_SECONDS)
            with lock:
                running[kind] -= 1

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(stage, range(40)))
    assert most == {"main": 1, "branch": 3}


def test_branches_that_come_later_do_not_overtake_a_waiting_main_stage() -> None:
    slots, order = CpuSlots(2), []

    def main_stage() -> None:
        with slots.take(branch=False):
            order.append("main")

    def branch_stage() -> None:
        with slots.take(branch=True):
            order.append("branch")

    with slots.take(branch=True):
        first = threading.Thread(target=main_stage)
        first.start()
        wait_for(lambda: len(slots._waiting) == 1, "the main stage to wait")
        second = threading.Thread(target=branch_stage)
        second.start()
        wait_for(lambda: len(slots._waiting) == 2, "the branch stage to wait, though there is a place for it")
        assert order == []
    first.join()
    second.join()
    assert order == ["main", "branch"]


def test_a_place_is_given_back_when_a_stage_fails() -> None:
    slots = CpuSlots(1)
    for _ in range(2):
        try:
            with slots.take(branch=False):
                raise RuntimeError
        except RuntimeError:
            pass

"""Main stages compute alone; branch stages share the machine."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from flows.building.cpu_slots import CpuSlots


def test_a_main_stage_runs_alone_and_branches_share_the_places() -> None:
    slots, lock = CpuSlots(3), threading.Lock()
    running: dict[str, int] = {"main": 0, "branch": 0}
    most = {"main": 0, "branch": 0}

    def stage(number: int) -> None:
        kind = "main" if number % 4 == 0 else "branch"
        with slots.take(branch=kind == "branch"):
            with lock:
                running[kind] += 1
                assert running["main"] <= 1
                assert not (running["main"] and running["branch"])
                most[kind] = max(most[kind], running[kind])
            time.sleep(0.005)
            with lock:
                running[kind] -= 1

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(stage, range(40)))
    assert most == {"main": 1, "branch": 3}


def test_branches_that_come_later_do_not_overtake_a_waiting_main_stage() -> None:
    slots, order = CpuSlots(2), []
    started = threading.Event()

    def main_stage() -> None:
        started.set()
        with slots.take(branch=False):
            order.append("main")

    def branch_stage() -> None:
        with slots.take(branch=True):
            order.append("branch")

    with slots.take(branch=True):
        first = threading.Thread(target=main_stage)
        first.start()
        started.wait()
        time.sleep(0.05)
        second = threading.Thread(target=branch_stage)
        second.start()
        second.join(0.1)
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

"""What a sweep costs for each of its points, whatever they do: `python benchmarks/sweep_overhead.py --points 100`.

The real flow `sana15-sweep` with a real Prefect server and an MLflow store, in a copy of the project, over points that
do nothing. Rows, by what a point is:

* at once: it is over as soon as it is begun, in the sweep's own process; what is left is the sweep itself
* process: a child process that writes an outcome and ends
* flow: a child process that runs the pipeline's own flow over no stage
* scheduled: a flow run in a work pool without workers, which is scheduled, looked at and cancelled

Each row counts the points that were begun, begun twice, in the table and in MLflow, so that none is lost or doubled.
"""

import argparse
import csv
import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nothing
from common import RESULTS, Results

PROJECT = Path(__file__).resolve().parents[1]
KINDS = ("at once", "process", "flow", "scheduled")
NAME = "sweep_overhead"
SWEEP, POOL, HOST = "nothing", "nowhere", "127.0.0.1"
PARALLEL = 2
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"  # another one than a new SQLite file, if it is set
PARTS = ("expand", "run_points", "rows_of", "write_results", "publish")

Timed = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def main() -> None:
    """Measure the kinds of points that are asked for, and keep the rows with those of other runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--inside", choices=KINDS, help=argparse.SUPPRESS)  # the process of the sweep itself
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(inside(arguments.inside, arguments.points)))
        return
    for kind in arguments.kinds:
        row = measured(kind, arguments.points)
        print(json.dumps(row, indent=2), flush=True)
        print(keep(row))


def keep(row: dict[str, Any]) -> Path:
    """Put a row into the result file, in place of one of the same kind and number of points."""
    results = Results(NAME, RESULTS)
    rows = json.loads(results.path.read_text())["rows"] if results.path.exists() else []
    others = [one for one in rows if any(one[key] != row[key] for key in ("kind", "points", "database"))]
    results.add(*sorted([*others, row], key=lambda one: (one["points"], KINDS.index(one["kind"]))))
    return results.path


def measured(kind: str, points: int) -> dict[str, Any]:
    """A row: the sweep in a process of its own, in a new project, beside a new server."""
    with tempfile.TemporaryDirectory(prefix="sweep-overhead-") as folder, served(Path(folder)) as environment:
        root, log = Path(folder) / "project", Path(folder) / "server.log"
        write_project(root, points)
        command = [sys.executable, str(Path(__file__).resolve()), "--points", str(points), "--inside", kind]
        before = requests(log)
        own = environment | {"NOTHING": kind, "PYTHONPATH": str(root)}
        done = subprocess.run(command, cwd=root, env=own, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        row["database"] = "PostgreSQL" if DATABASE in os.environ else "SQLite"
        row["requests to Prefect for each point"] = round((requests(log) - before) / points, 2)
        return row | ({} if kind == "scheduled" else counted(root))


def write_project(root: Path, points: int) -> None:
    """A clone of the project as it is, with a sweep over so many learning rates that shares no stage."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, root / name)
    shutil.copyfile(nothing.__file__, root / "nothing.py")
    rates = [round(1e-6 * number, 9) for number in range(1, points + 1)]
    sweep = {"from": "shard", "profile": "smoke", "grid": {"finetune.learning_rate": rates}, "models": ["grown"]}
    (root / "sweeps" / f"{SWEEP}.yaml").write_text(json.dumps(sweep))
    for command in ("init -q", "add -A", "-c user.name=benchmark -c user.email=benchmark@localhost commit -qm code"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server that logs each request; the environment that names it."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = str(probe.getsockname()[1])
    plain = {
        name: value
        for name, value in os.environ.items()
        if name == DATABASE or not name.startswith(("PREFECT", "MLFLOW"))
    }
    settings = {"PREFECT_HOME": str(folder / ".prefect"), "PREFECT_API_URL": f"http://{HOST}:{port}/api"}
    settings |= dict.fromkeys(("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"), secrets.token_urlsafe())
    environment = plain | settings | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", port, "--no-ui"]
    with open(folder / "server.log", "w") as log:
        command += ["--log-level", "INFO"]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        while not _answers(f"{settings['PREFECT_API_URL']}/health"):
            time.sleep(0.3)
        yield environment
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


def requests(log: Path) -> int:
    """How many requests the server has answered."""
    time.sleep(1)
    return sum('HTTP/1.1"' in line and "/api/health" not in line for line in log.read_text().splitlines())


def inside(kind: str, points: int) -> dict[str, Any]:
    """Run the sweep in the working directory; returns its seconds, and those of its parts."""
    import flows.sweep
    from flows.sweeps import follow_points, point_process

    parts: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                parts[name] += time.perf_counter() - started

        return run

    for name in PARTS:
        setattr(flows.sweep, name, timed(name, getattr(flows.sweep, name)))
    follow_points.prepare = timed("prepare", follow_points.prepare)
    point_process.MODULE = "nothing"
    started = time.perf_counter()
    if kind == "scheduled":
        schedule(timed)
    else:
        if kind == "at once":
            flows.sweep.LocalProcesses = AtOnce
        flows.sweep.sweep(SWEEP, parallel=PARALLEL)
    whole = time.perf_counter() - started
    return {
        "kind": kind,
        "points": points,
        "seconds": round(whole, 1),
        "seconds for each point": round(whole / points, 3),
        "parts": {name: round(value, 2) for name, value in parts.items()},
    }


def schedule(timed: Timed) -> None:
    """Schedule all points in a pool that nobody works for, look at them, and cancel them."""
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.sweep import expand, open_pool, read_sweep
    from flows.sweeps import follow_points

    get_client(sync_client=True).create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    plan = read_sweep(Path.cwd(), SWEEP)
    points, pool = expand(Path.cwd(), plan), open_pool(Path.cwd(), plan, POOL)
    find, submit = timed("find", pool.find_run), timed("submit", pool.submit)
    handles = {}
    for point in points:
        find(point)
        follow_points.prepare(Path.cwd(), point)
        handles[point.key] = submit(point)
    look = timed("look", lambda: [pool.state(point, handles[point.key]).phase for point in points])
    assert look() == ["queued"] * len(points)
    timed("cancel", pool.cancel_all)()


class AtOnce:
    """A place where a point is over as soon as it is begun, without a process."""

    def __init__(self, *_given: object) -> None: ...

    def find_run(self, _point: Any) -> None:
        """Nothing is under way."""

    def has_room(self) -> bool:
        """Always."""
        return True

    def submit(self, point: Any) -> str:
        """Leave the outcome."""
        nothing.leave_outcome(point.folder)
        return point.key

    def state(self, _point: Any, _handle: str) -> Any:
        """Done."""
        from flows.sweeps.place_interface import PointState

        return PointState("done")

    def cancel(self, _handles: list[str]) -> None:
        """Nothing is left."""


def counted(root: Path) -> dict[str, int]:
    """How many points were begun, begun twice, are done in the table, and are runs of MLflow's with an end."""
    begun = Counter((root / nothing.BEGUN).read_text().split())
    table = csv.DictReader((root / f"results/sweeps/{SWEEP}/table.csv").read_text().splitlines())
    with sqlite3.connect(root / "mlflow.db") as store:
        query = "select count(*) from runs where name like 'point %' and status = 'FINISHED'"
        ((recorded,),) = store.execute(query).fetchall()
    return {
        "begun": len(begun),
        "begun twice": sum(count > 1 for count in begun.values()),
        "in the table": len({line["point"] for line in table if line["state"] == "done"}),
        "in MLflow": recorded,
    }


if __name__ == "__main__":
    main()

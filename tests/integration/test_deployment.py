"""The whole pipeline for real, on the smoke profile: server, worker, deployment, flow and DVC.

The runs are shared by the tests below: one by the deployment and one by `dvc repro`, in two clones without a common
cache.
"""

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.building.workspace import merged_params
from flows.entry.password import PASSWORD
from flows.servers import POOL
from tests.helpers.other_account import as_another_account, free_port
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.small_workspace import PROJECT, PUBLISHED_DETECTOR
from tests.helpers.whole_pipeline import BIN, Clone, new_clone, new_origin


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository of the project's code as it is now, with the smoke profile's params as its default."""
    return new_origin(tmp_path_factory.mktemp("origin"), merged_params(PROJECT, "smoke", {}))


@pytest.fixture(scope="module")
def served(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with its servers up, on ports of their own."""
    ports = {"PREFECT_PORT": free_port(), "MLFLOW_PORT": free_port()}
    clone = new_clone(origin, tmp_path_factory.mktemp("flow"), **ports)
    try:
        up = clone.python("-m", "flows.servers", "up")
        assert up.returncode == 0, up.stderr
        (line,) = [line for line in up.stdout.splitlines() if line.startswith("export ")]
        # as in a shell that has read the line: what the servers need to know is in it
        shell = clone.run("sh", "-c", f'{line}; printf "%s\n" "$PREFECT_API_URL" "$PREFECT_API_AUTH_STRING"')
        clone.environment["PREFECT_API_URL"], clone.environment["PREFECT_API_AUTH_STRING"] = shell.stdout.split()
        yield clone
    finally:
        clone.python("-m", "flows.servers", "down")


@pytest.fixture(scope="module")
def deployed(served: Clone) -> Clone:
    """The same clone after a run of its deployment, which must end Completed."""
    done = served.deploy()
    log = (served.root / ".sana15/servers/worker.log").read_text()
    assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr + log
    return served


@pytest.fixture(scope="module")
def reproduced(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Another clone after `dvc repro`, with no Prefect server and an MLflow server that is down."""
    down = f"http://127.0.0.1:{free_port()}"
    clone = new_clone(origin, tmp_path_factory.mktemp("repro"), MLFLOW_TRACKING_URI=down)
    done = clone.run(str(BIN / "dvc"), "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return clone


def test_a_deployment_run_ends_completed_with_a_scored_family(deployed: Clone) -> None:
    summary = json.loads((deployed.root / "results/summary.json").read_text())
    depths = yaml.safe_load((deployed.root / "params.yaml").read_text())["prune"]["depths"]
    cut = {f"{kind}-{depth}" for kind in ("pruned", "finetuned") for depth in depths}
    assert {model["name"] for model in summary["models"]} == {"small", "grown", *cut}
    assert (deployed.root / "results/report.html").stat().st_size > 0


def test_dvc_status_is_clean_after_the_flow(deployed: Clone) -> None:
    assert json.loads(deployed.run(str(BIN / "dvc"), "status", "--json").stdout) == {}


def test_dvc_shows_the_metrics_and_plots_of_what_the_flow_built(deployed: Clone) -> None:
    metrics = json.loads(deployed.run(str(BIN / "dvc"), "metrics", "show", "--json").stdout)[""]["data"]
    assert metrics["results/metrics.json"]["data"] and not [name for name, file in metrics.items() if "error" in file]
    plots = json.loads(deployed.run(str(BIN / "dvc"), "plots", "show", "--json").stdout)
    assert "errors" not in plots and plots["data"]["held-out loss"]


def test_a_second_run_shows_every_stage_as_cached(deployed: Clone) -> None:
    done = deployed.python("-m", "flows.full_pipeline")
    assert done.returncode == 0, done.stderr
    cached = {line.split()[1].rstrip(":") for line in done.stderr.splitlines() if line.endswith(": cached")}
    assert len(cached) == len(deployed.lock())
    assert ": done in" not in done.stderr


def test_one_fine_tune_parameter_runs_only_the_stages_behind_it_and_leaves_the_default_alone(deployed: Clone) -> None:
    before = (deployed.root / "dvc.lock").read_bytes()
    outputs = sorted(path.stat().st_mtime_ns for path in (deployed.root / "outputs").rglob("*"))
    done = deployed.python("-m", "flows.full_pipeline", "-p", "finetune.learning_rate=0.0004")
    assert done.returncode == 0, done.stderr
    ran = {line.split()[1].rstrip(":") for line in done.stderr.splitlines() if ": done in" in line}
    behind = ("finetune@", "evaluate@finetuned-", "report")
    assert ran == {name.replace("_cut", "") for name in deployed.lock() if name.replace("_cut", "").startswith(behind)}
    assert (deployed.root / "dvc.lock").read_bytes() == before
    assert outputs == sorted(path.stat().st_mtime_ns for path in (deployed.root / "outputs").rglob("*"))


def logs_of(clone: Clone, done: subprocess.CompletedProcess[str]) -> str:
    """What Prefect has logged of the flow run that `done` has watched, without the breaks of lines."""
    (run,) = re.findall(r"UUID: (\S+)", done.stdout)
    logs = clone.run("env", "COLUMNS=1000", str(BIN / "prefect"), "flow-run", "logs", run)
    assert logs.returncode == 0, logs.stdout + logs.stderr
    return " ".join(logs.stdout.split())


def test_a_stage_that_fails_makes_the_deployment_run_exit_non_zero_with_the_reason(served: Clone) -> None:
    done = served.deploy(overrides={"autoencoder.learning_rate": 1e20})
    assert done.returncode != 0
    assert "autoencoder failed: autoencoder: params.yaml: autoencoder: the loss is" in logs_of(served, done)


def test_a_path_that_is_wrong_makes_the_deployment_run_exit_non_zero_before_any_stage(served: Clone) -> None:
    done = served.deploy(overrides=PUBLISHED_DETECTOR | {"shard.source": "folder", "shard.path": "no/such/folder"})
    assert done.returncode != 0
    assert "no/such/folder is no folder: name one that holds pictures and captions" in logs_of(served, done)


def test_a_deployment_run_stops_at_the_stage_that_it_is_asked_to(served: Clone) -> None:
    done = served.deploy(until="shard", overrides={"shard.train_samples": 200})
    assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr
    (copy,) = [
        path for path in (served.root / "runs").iterdir() if "train_samples: 200" in (path / "params.yaml").read_text()
    ]
    assert [path.name for path in (copy / "outputs").iterdir()] == ["shards"] and not (
        copy / "results/report.html"
    ).exists()


def without_measured_times(lock: dict[str, Any]) -> dict[str, Any]:
    """A lock without the outputs that are times: those of the stage latency, and of the report, which shows them."""
    found = {name: dict(entry) for name, entry in lock.items()}
    for name in ("latency", "report"):
        assert found[name].pop("outs")
    found["report"]["deps"] = [dep for dep in found["report"]["deps"] if dep["path"] != "outputs"]
    return found


def test_the_flow_and_dvc_repro_leave_the_same_lock(deployed: Clone, reproduced: Clone) -> None:
    assert without_measured_times(deployed.lock()) == without_measured_times(reproduced.lock())


def test_dvc_status_is_clean_after_dvc_repro(reproduced: Clone) -> None:
    assert json.loads(reproduced.run(str(BIN / "dvc"), "status", "--json").stdout) == {}


def test_an_experiment_of_dvc_runs_what_is_behind_its_parameter_and_shows_its_scores(reproduced: Clone) -> None:
    before = [(reproduced.root / name).read_bytes() for name in ("params.yaml", "dvc.lock", "results/metrics.json")]
    done = reproduced.run(str(BIN / "dvc"), "exp", "run", "--temp", "-S", "finetune.steps=12")
    assert done.returncode == 0, done.stdout + done.stderr
    behind = ("finetune@", "evaluate_cut@finetuned-", "report")
    ran = set(re.findall("Running stage '(.+)'", done.stdout))
    assert ran == {name for name in reproduced.lock() if name.startswith(behind)}
    after = [(reproduced.root / name).read_bytes() for name in ("params.yaml", "dvc.lock", "results/metrics.json")]
    assert after == before
    shown = json.loads(reproduced.run(str(BIN / "dvc"), "exp", "show", "--json").stdout)
    (experiment,) = [rev["data"] for base in shown for run in base["experiments"] or [] for rev in run["revs"]]
    assert experiment["params"]["params.yaml"]["data"]["finetune"]["steps"] == 12
    assert set(experiment["metrics"]["results/metrics.json"]["data"]) == set(json.loads(before[2]))


ASK = """
import json, sys, urllib.error, urllib.request
for url, body, given in json.load(sys.stdin):
    request = urllib.request.Request(url, body if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if given:
        request.add_header("Authorization", "Basic " + given)
    try:
        answer = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        answer = error
    print(json.dumps([url, answer.status, answer.read().decode(errors="replace")]))
"""
Answer = tuple[str, int, str]


def asked(*requests: tuple[str, Any], given: str = "") -> list[Answer]:
    """What another account is answered: the address, the status, the text. `given` are credentials."""
    token = base64.b64encode(given.encode()).decode()
    done = as_another_account(ASK, json.dumps([(*request, token) for request in requests]))
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture
def password(served: Clone) -> str:
    return (served.root / PASSWORD).read_text().strip()


@pytest.fixture
def run_with(served: Clone, password: str) -> Callable[[Any], tuple[str, Any]]:
    """A request for a run of the deployment with these job variables."""
    api = served.environment["PREFECT_API_URL"]
    ((_, status, text),) = asked((f"{api}/deployments/name/sana15/full-pipeline", None), given=password)
    assert status == 200
    url = f"{api}/deployments/{json.loads(text)['id']}/create_flow_run"
    far = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    return lambda variables: (url, {"job_variables": variables, "state": far})


def test_another_account_gets_nothing_from_the_servers_without_the_password(
    served: Clone, password: str, run_with: Callable[[Any], tuple[str, Any]]
) -> None:
    api, mlflow = served.environment["PREFECT_API_URL"], f"http://127.0.0.1:{served.environment['MLFLOW_PORT']}"
    requests = [
        run_with({"command": "id"}),
        run_with({}),
        (f"{api}/deployments/filter", {}),
        (f"{api}/work_pools/{POOL}", None),
        (f"{api}/admin/settings", None),
        (f"{mlflow}/", None),
        (f"{mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 1}),
        (f"{mlflow}/ajax-api/2.0/mlflow/experiments/search", {"max_results": 1}),
        (f"{mlflow}/ajax-api/3.0/mlflow/assistant/config", None),
        (f"{mlflow}/graphql", {"query": "{ __typename }"}),
        (f"{mlflow}/api/2.0/mlflow-artifacts/artifacts", None),
        (f"{mlflow}/get-artifact?path=x&run_uuid=y", None),
    ]
    for given in ("", "admin:password", "admin:password1234", "sana15:", "sana15:password1234", f"{password}x"):
        assert {(url, status) for url, status, _ in asked(*requests, given=given)} == {
            (url, 401) for url, _ in requests
        }
    with_it = {url: status for url, status, _ in asked(*requests[1:8], given=password)}
    assert set(with_it.values()) == {200, 201}, with_it


def test_with_the_password_a_run_still_cannot_be_given_another_command(
    password: str, run_with: Callable[[Any], tuple[str, Any]]
) -> None:
    variables = ({"command": "id"}, {"working_dir": "/"}, {"env": {"PYTHONPATH": "/"}})
    for (_, status, text), (name,) in zip(
        asked(*(run_with(one) for one in variables), given=password), variables, strict=True
    ):
        assert status == 422 and name in text


def test_the_line_that_up_prints_leads_a_new_shell_to_the_server(served: Clone, password: str) -> None:
    said = served.python("-m", "flows.servers", "status").stdout
    assert password.partition(":")[2] not in said
    (line,) = [line for line in said.splitlines() if line.startswith("export ")]
    new = {name: value for name, value in served.environment.items() if not name.startswith("PREFECT")}
    shell = ["sh", "-c", f"{line}; prefect deployment ls"]
    done = subprocess.run(shell, cwd="/", env=new, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0 and "full-pipeline" in done.stdout, done.stdout + done.stderr


def test_the_password_is_in_no_other_file_and_on_no_command_line(deployed: Clone, password: str) -> None:
    secret = password.partition(":")[2].encode()
    files = [path for path in deployed.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if secret in path.read_bytes()] == [deployed.root / PASSWORD]
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if secret.decode() in line]
    for folder, mode in ((".sana15", 0o700), (".prefect", 0o700), ("mlartifacts", 0o700), ("mlflow.db", 0o600)):
        assert (deployed.root / folder).stat().st_mode & 0o777 == mode


def test_tags_join_git_dvc_and_prefect_in_mlflow(deployed: Clone) -> None:
    commit = deployed.run("git", "rev-parse", "HEAD").stdout.strip()
    finished = deployed.mlflow_runs("attributes.run_name = 'default' and attributes.status = 'FINISHED'")
    parent = min(finished, key=lambda run: run.info.start_time)
    flow_run = parent.data.tags["prefect.flow_run_id"]
    assert deployed.run(str(BIN / "prefect"), "flow-run", "inspect", flow_run).returncode == 0
    stages = deployed.mlflow_runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    by_name = {run.info.run_name: run for run in stages}
    for address, entry in deployed.lock().items():
        run = by_name[address.replace("_cut", "")]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.source.git.commit"] == commit
        assert json.loads(run.data.tags["dvc.outs"]) == {out["path"]: out["md5"] for out in entry["outs"]}
        assert deployed.mlflow_artifact(run, "dvc.lock.json") == entry
    for model in json.loads((deployed.root / "results/summary.json").read_text())["models"]:
        run = by_name[f"model {model['name']}"]
        assert run.data.metrics["geneval/overall"] == model["score"]["overall"]
        assert run.data.params["depth"] == str(model["depth"])

"""The shipped templates of work pools: rendered by Prefect, the manifest held to the Kubernetes API's own schema."""

import asyncio
import json
import re
from dataclasses import asdict
from typing import Any, TypeVar

import kubernetes_validate
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.utilities.schema_tools import ValidationError, validate
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration

from flows.sweeps.sweep_file import Cluster
from tests.helpers.small_workspace import PROJECT

POOLS = PROJECT / "flows/places/templates"
Job = TypeVar("Job", bound=BaseJobConfiguration)
SCRATCH = {"name": "shared", "emptyDir": {}}
ASKED = {"image": "registry.example/sana15:1", "folder": "/shared"}
ASKED_OF = {"process": {}, "kubernetes": ASKED}
TEMPLATES = [path.stem for path in sorted(POOLS.glob("*.json"))]


class KubernetesJob(BaseJobConfiguration):
    """A configuration that has a manifest, as prefect-kubernetes' own has, whose cluster is not asked for here."""

    job_manifest: dict[str, Any]


def template(name: str) -> dict[str, Any]:
    return json.loads((POOLS / f"{name}.json").read_text())


def rendered(kind: type[Job], name: str, values: dict[str, Any]) -> Job:
    """A template with these values, as a worker renders it; no server is asked where no block is named."""
    nobody = PrefectClient("http://127.0.0.1:1/api")
    return asyncio.run(kind.from_template_and_values(template(name), values, client=nobody))


def manifest(**values: Any) -> dict[str, Any]:
    """The manifest of a job with these variables, the environment as a list, which the worker makes of it."""
    job = rendered(KubernetesJob, "kubernetes", ASKED | values)
    container = container_of(job.job_manifest)
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    return job.job_manifest


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_uses_what_it_declares_and_declares_what_it_uses(name: str) -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template(name)["job_configuration"])))
    assert used == template(name)["variables"]["properties"].keys()


def test_the_process_template_renders() -> None:
    job = rendered(ProcessJobConfiguration, "process", {"env": {"A": "b"}})
    assert (job.env, job.stream_output, job.command) == ({"A": "b"}, False, None)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "variables",
    [
        {"command": "id"},
        {"working_dir": "/elsewhere"},
        {"entrypoint": "other.py:flow"},
        {"env.PATH": "/elsewhere"},
        *({"env": {name: "x"}} for name in ("PATH", "PYTHONPATH", "LD_PRELOAD", "PREFECT_API_URL", "NCCL_NET_PLUGIN")),
        {"env": {"MLFLOW_TRACKING_PASSWORD": "which a server would show"}},
    ],
)
def test_variables_that_lead_to_other_code_are_refused(name: str, variables: dict[str, Any]) -> None:
    schema, (what,) = template(name)["variables"], variables
    with pytest.raises(ValidationError, match="was unexpected" if what != "env" else "does not match"):
        validate(ASKED_OF[name] | variables, schema, raise_on_error=True)
    validate(ASKED_OF[name] | {"env": {"MLFLOW_TRACKING_URI": "http://head:5000"}}, schema, raise_on_error=True)


def test_a_command_or_folder_that_comes_past_the_check_is_no_part_of_the_job() -> None:
    job = rendered(ProcessJobConfiguration, "process", {"command": "id", "working_dir": "/elsewhere"})
    assert (job.command, job.working_dir) == (None, None)
    assert not {"command", "args"} & container_of(manifest(command="id", args=["id"])).keys()


def test_an_image_that_the_pool_fixes_cannot_be_replaced() -> None:
    fixed = template("kubernetes")
    fixed["variables"]["properties"]["image"] |= {"const": ASKED["image"], "default": ASKED["image"]}
    with pytest.raises(ValidationError, match="was expected"):
        validate(ASKED | {"image": "other"}, fixed["variables"], raise_on_error=True)
    validate(ASKED, fixed["variables"], raise_on_error=True)


@pytest.mark.parametrize("version", ["1.34", "1.37"])
@pytest.mark.parametrize(
    "values", [{}, {"gpus": 0, "user": 1000, "node_selector": {"gpu": "h200"}}, {"volume": SCRATCH}]
)
def test_the_kubernetes_manifest_is_what_the_api_takes(version: str, values: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest(**values), version, strict=True)


@pytest.mark.parametrize(("place", "wrong"), [("completion", 1), ("backoffLimit", "none")])
def test_a_wrong_manifest_is_refused(place: str, wrong: Any) -> None:
    job = manifest()
    job["spec"][place] = wrong
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.34", strict=True)


def test_the_manifest_has_the_image_the_gpus_and_the_shared_folder_that_a_sweep_asks_for() -> None:
    asked = {name: value for name, value in asdict(Cluster(gpus=2, cpus=8, memory="64G")).items() if value is not None}
    job = manifest(**asked)
    container = container_of(job)
    assert container["image"] == ASKED["image"]
    assert container["resources"]["limits"] == {"memory": "64G", "nvidia.com/gpu": 2}
    assert container["resources"]["requests"] == {"cpu": 8, "memory": "64G"}
    (mount,), (volume,) = container["volumeMounts"], job["spec"]["template"]["spec"]["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/shared"} and container["workingDir"] == "/shared"
    assert volume["persistentVolumeClaim"] == {"claimName": "sana15"}
    # Prefect and the sweep run a point again, not Kubernetes; and its worker looks for a container of this name
    assert (job["spec"]["backoffLimit"], container["name"]) == (0, "prefect-job")

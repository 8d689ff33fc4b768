"""The experiment's checkpoints in MLflow's model registry, and the way from a model's name to its folder.

Each checkpoint is a logged model and a version of the registered model `sana15`. Its tags are the path of its folder
and the sha256 of the folder's manifest; weights are not copied. An alias (`small`, `grown`, `pruned-8`, `finetuned-8`)
points at the newest version of that name. Copies of the project (`runs/smoke`) add versions and leave these aliases as
they are. A user's own aliases (`champion`) work too.
"""

import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.system.manifest import verify_manifest
from tasks.system.paths import main_project
from tasks.tracking.mlflow_store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTERED_MODEL = "sana15"
FAMILY = re.compile(r"small|grown|(pruned|finetuned)-\d+")
PATH_TAG = "path"
DIGEST_TAG = "manifest_sha256"


def describe(folder: Path) -> dict[str, str] | None:
    """Depth and number of parameters of a checkpoint, read from its headers; None for other outputs."""
    if not FAMILY.fullmatch(folder.name) or folder.parent.name != paths.OUTPUTS.name:
        return None
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        parameters = sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
    return {"depth": str(read_json(folder / "config.json")["depth"]), "parameters": str(parameters)}


def register(
    client: "MlflowClient", experiment: str, run_id: str, folder: Path, digest: str, facts: dict[str, str]
) -> None:
    """Register the checkpoint in `folder` (absolute), unless it is registered; it may have been replaced since.

    The folder's name becomes the version's alias, but not in a copy of the project, which may be of toy scale.
    """
    version = find_version(client, folder, digest)
    if version is None:
        version = _create_version(client, experiment, run_id, folder, digest, facts)
    workspace = folder.parents[1]
    if main_project(workspace) == workspace:
        client.set_registered_model_alias(REGISTERED_MODEL, folder.name, version.version)


def find_version(client: "MlflowClient", folder: Path, digest: str) -> "ModelVersion | None":
    """The newest version that was registered from `folder` with a manifest of this digest."""
    versions = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    same = [v for v in versions if v.tags.get(PATH_TAG) == str(folder) and v.tags.get(DIGEST_TAG) == digest]
    return max(same, key=lambda version: int(version.version), default=None)


def resolve_model(name: str | Path) -> Path:
    """The checkpoint folder of a model, which is given as a folder, a name in this workspace (`grown`) or an alias.

    Raises UserError if there is no such model, or if an alias's folder no longer has the registered weights.
    """
    for folder in (Path(name), paths.model_folder(str(name))):
        if (folder / "config.json").is_file():
            return folder
    version = _aliased(str(name))
    if version is None:
        folders = (path.parent.name for path in paths.OUTPUTS.glob("*/config.json"))
        known = ", ".join(sorted(filter(FAMILY.fullmatch, folders))) or "no model"
        raise UserError(f"model {str(name)!r} is no folder, output or registry alias: {paths.OUTPUTS} has {known}")
    folder = Path(version.tags[PATH_TAG])
    if not folder.is_dir():
        raise UserError(f"model {name!r} was registered from {folder}, which is gone: run the stage that writes it")
    if verify_manifest(folder) != version.tags[DIGEST_TAG]:
        raise UserError(f"model {name!r}: {folder} holds other weights than were registered: give the folder instead")
    return folder


def params_of(model: Path) -> Params:
    """The params of the experiment that made a checkpoint folder; for a folder elsewhere, those of the workspace."""
    own = model.resolve().parent.parent / PARAMS_FILE
    return load_params(own if model.resolve().parent.name == paths.OUTPUTS.name and own.is_file() else PARAMS_FILE)


def _aliased(alias: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        client, _ = connect()
        return client.get_model_version_by_alias(REGISTERED_MODEL, alias)
    except (MlflowException, OSError):
        return None


def _create_version(
    client: "MlflowClient", experiment: str, run_id: str, folder: Path, digest: str, facts: dict[str, str]
) -> "ModelVersion":
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        client.create_registered_model(REGISTERED_MODEL)
    tags = {"model": folder.name, PATH_TAG: str(folder), DIGEST_TAG: digest}
    model = client.create_logged_model(
        experiment, name=folder.name, source_run_id=run_id, tags=tags, params=facts, model_type="SANA-1.5"
    )
    client.finalize_logged_model(model.model_id, "READY")
    source = f"models:/{model.model_id}"
    return client.create_model_version(REGISTERED_MODEL, source, run_id=run_id, tags=tags, model_id=model.model_id)

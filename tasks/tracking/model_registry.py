"""The experiments' checkpoints in MLflow's model registry, and the way from a model's name to its folder.

Each experiment has a registered model: `sana15-default` for the project itself, `sana15-smoke` for its copy
`runs/smoke`, and `sana15-points` for the points of all sweeps. Each checkpoint is a logged model and a version of the
registered model. Its tags are the path of its folder, the sha256 of the folder's manifest, and its scores; weights
are not copied. An alias (`small`, `grown`, `pruned-8`, `sft-grown`) points at the newest version of that name. Points
have no aliases, since many of them have a model of the same name. A user's own aliases (`champion`) work too.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from safetensors import safe_open

from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import read_json
from tasks.system.manifest import verify_manifest
from tasks.system.paths import COPIES, main_project
from tasks.tracking.mlflow_store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "sana15-"
DEFAULT = f"{PREFIX}default"
"""The registered model of the project itself."""
FAMILY = re.compile(r"(sft-)?(small|grown|(pruned|finetuned)-\d+)|scratch-\d+")
PATH_TAG = "path"
DIGEST_TAG = "manifest_sha256"


def describe(folder: Path) -> dict[str, str] | None:
    """Depth and number of parameters of a checkpoint, read from its headers; None for other outputs."""
    if not FAMILY.fullmatch(folder.name) or folder.parent.name != paths.OUTPUTS.name:
        return None
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        parameters = sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
    return {"depth": str(read_json(folder / "config.json")["depth"]), "parameters": str(parameters)}


def registered_model(workspace: Path) -> str:
    """The name of the registered model that a workspace's checkpoints are versions of; see the module's docstring."""
    workspace = workspace.resolve()
    main = main_project(workspace)
    if workspace == main:
        return DEFAULT
    return PREFIX + (workspace.name if workspace.parent == main / COPIES else workspace.parent.name)


def register(
    client: "MlflowClient",
    experiment: str,
    run_id: str,
    folder: Path,
    digest: str,
    facts: dict[str, str],
    scores: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Register the checkpoint in `folder` (absolute), unless it is registered; it may have been replaced since.

    The version gets `scores` as tags. The folder's name becomes its alias, but not for the points of sweeps and for the
    temporary experiments of DVC, which share one registered model.
    """
    workspace = folder.parents[1]
    name, main = registered_model(workspace), main_project(workspace)
    version = find_version(client, name, folder, digest)
    if version is None:
        version = _create_version(client, experiment, run_id, name, folder, digest, facts)
    for key, value in scores.items():
        client.set_model_version_tag(name, version.version, key, value)
    if workspace == main or workspace.parent == main / COPIES:
        client.set_registered_model_alias(name, folder.name, version.version)


def find_version(client: "MlflowClient", name: str, folder: Path, digest: str) -> "ModelVersion | None":
    """The newest version of the model `name` that was registered from `folder` with a manifest of this digest."""
    versions = client.search_model_versions(f"name = '{name}'")
    same = [v for v in versions if v.tags.get(PATH_TAG) == str(folder) and v.tags.get(DIGEST_TAG) == digest]
    return max(same, key=lambda version: int(version.version), default=None)


def resolve_model(name: str | Path) -> Path:
    """The checkpoint folder of a model, which is given as a folder, a name in this workspace (`grown`) or an alias.

    An alias is looked for in this workspace's experiment, then in the project's own. `sana15-smoke@grown` names an
    alias of another experiment, as MLflow's own addresses of models do.

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


def _aliased(name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    model, at, alias = name.partition("@")
    models = (model,) if at else dict.fromkeys((registered_model(Path.cwd()), DEFAULT))
    try:
        client, _ = connect()
    except (MlflowException, OSError):
        return None
    for registered in models:
        with suppress(MlflowException):
            return client.get_model_version_by_alias(registered, alias if at else name)
    return None


def _create_version(
    client: "MlflowClient",
    experiment: str,
    run_id: str,
    name: str,
    folder: Path,
    digest: str,
    facts: dict[str, str],
) -> "ModelVersion":
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {"model": folder.name, PATH_TAG: str(folder), DIGEST_TAG: digest}
    model = client.create_logged_model(
        experiment, name=folder.name, source_run_id=run_id, tags=tags, params=facts, model_type="SANA-1.5"
    )
    client.finalize_logged_model(model.model_id, "READY")
    source = f"models:/{model.model_id}"
    return client.create_model_version(name, source, run_id=run_id, tags=tags, model_id=model.model_id)

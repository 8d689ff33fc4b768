"""The MLflow store that keeps the project's runs, and how to connect to it."""

import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.system.files import private_folder
from tasks.system.paths import main_project, refuse_question_mark
from tasks.tracking.mlflow_database import prepare_database
from tasks.tracking.mlflow_views import VIEW_TAG, models_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "sana15"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""With MLflow's own defaults a call would wait four minutes when the server is down."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the SQLite file `mlflow.db` in the main project."""
    return os.environ.get(URI_VARIABLE) or own_database()


def own_database() -> str:
    """The address of the SQLite file in the main project. Raises UserError if the path cannot stand in an address."""
    project = main_project(Path.cwd())
    refuse_question_mark(project)
    return f"sqlite:///{project / DATABASE}"


def connect() -> tuple["MlflowClient", str]:
    """A client of the store and the id of the project's experiment. Store and experiment are made if they are missing.

    Raises OSError if a server on this machine is down, and MLflow's exception if another store cannot be reached.
    Either is raised within seconds. Raises UserError if the project's own database is damaged.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(name, "true")
    uri = tracking_uri()
    refuse_silent_port(uri)
    artifacts = main_project(Path.cwd()) / ARTIFACTS
    # closed to other users, as MLflow's server asks for a password; older files may still be open to them
    if uri == own_database():
        prepare_database(main_project(Path.cwd()) / DATABASE)
    if uri.startswith("sqlite:"):
        private_folder(artifacts)
    import mlflow

    for noisy in ("alembic", "mlflow.store", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # for the whole process, since the registry looks logged models up there and not in the client's store
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        if experiment.tags.get(VIEW_TAG) != models_view():
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, models_view())
        return client, experiment.experiment_id
    # artifacts lie beside a database; a server decides itself where its own lie
    location = str(artifacts) if uri.startswith("sqlite:") else None
    return client, client.create_experiment(EXPERIMENT, location, {VIEW_TAG: models_view()})


def refuse_silent_port(uri: str) -> None:
    """Raises OSError if `uri` is a server on this machine that is down. To find out by MLflow would take seconds."""
    address = urlsplit(uri)
    if address.scheme == "http" and address.hostname in LOCAL_HOSTS:
        socket.create_connection((address.hostname, address.port or 80), timeout=5).close()

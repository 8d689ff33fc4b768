"""Where MLflow keeps the project's runs, and the way to it."""

import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.system.files import private_file, private_folder
from tasks.system.paths import main_project

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "sana15"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

# MLflow's own defaults block a call for four minutes when its server is down.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the SQLite file `mlflow.db` in the main project."""
    return os.environ.get(URI_VARIABLE) or own_database()


def own_database() -> str:
    """The address of the SQLite file in the main project."""
    return f"sqlite:///{main_project(Path.cwd()) / DATABASE}"


def connect() -> tuple["MlflowClient", str]:
    """A client of the store and the id of the project's experiment, both created if need be.

    Raises whatever MLflow raises if the store cannot be reached; a server that is down is noticed within seconds.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(name, "true")
    uri = tracking_uri()
    refuse_silent_port(uri)
    artifacts = main_project(Path.cwd()) / ARTIFACTS
    # for their owner alone, as MLflow's server asks for a password; also what was there before it did
    if uri == own_database():
        private_file(main_project(Path.cwd()) / DATABASE)
    if uri.startswith("sqlite:"):
        private_folder(artifacts)
    import mlflow

    for noisy in ("alembic", "mlflow.store", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # not only for this client: the registry looks logged models up in the store of the whole process
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return client, experiment.experiment_id
    # a file store beside the database; a server knows its own
    location = str(artifacts) if uri.startswith("sqlite:") else None
    return client, client.create_experiment(EXPERIMENT, artifact_location=location)


def refuse_silent_port(uri: str) -> None:
    """Raises OSError if `uri` is a server on this machine that is down: importing MLflow to find out takes seconds."""
    address = urlsplit(uri)
    if address.scheme == "http" and address.hostname in LOCAL_HOSTS:
        socket.create_connection((address.hostname, address.port or 80), timeout=5).close()

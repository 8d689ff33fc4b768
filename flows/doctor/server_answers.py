"""Looks at the servers that `make up` has started, those that the environment names, and the password."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx

from flows.doctor.finding import Finding, fine, shown
from flows.entry.named_server import refuse_silent_server
from flows.entry.password import API_VARIABLE, PASSWORD, read_password
from flows.entry.project_servers import SERVERS_FOLDER, listening_ports, recorded_process
from tasks.system.error_lines import line_of, without_password
from tasks.system.errors import UserError
from tasks.system.paths import main_project
from tasks.tracking.mlflow_store import URI_VARIABLE

ANSWER_SECONDS = 10.0


def look(project: Path) -> Iterator[Finding]:
    """A line for each server and one for the password."""
    here = main_project(project)
    pid_files = sorted((here / SERVERS_FOLDER).glob("*.pid"))
    for pid_file in pid_files:
        yield state_of(pid_file, project)
    if not pid_files:
        yield fine("none is up: a run has a temporary server of Prefect's, and make up starts lasting ones")
    if url := os.environ.get(API_VARIABLE):
        try:
            refuse_silent_server()
            yield fine(f"Prefect's server {without_password(url)} answers")
        except UserError as error:
            yield Finding(str(error))
    if (uri := os.environ.get(URI_VARIABLE, "")).startswith(("http://", "https://")):
        yield mlflow_answer(uri)
    if os.path.lexists(path := here / PASSWORD):
        try:
            read_password(path)
        except UserError as error:
            yield Finding(str(error))


def state_of(pid_file: Path, project: Path) -> Finding:
    """Whether the server that this file records lives."""
    name, log = pid_file.stem, shown(pid_file.with_suffix(".log"), project)
    if (process := recorded_process(pid_file)) is None:
        return Finding(
            f"{name} was started and has ended: {log} says why, make up starts it again, make down forgets it"
        )
    ports = ", ".join(map(str, sorted(listening_ports(process))))
    return fine(f"{name} is up (process {process.pid}{f', port {ports}' if ports else ''})")


def mlflow_answer(uri: str) -> Finding:
    """Whether MLflow's server answers. Any answer shows that it is there."""
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = line_of(error) or f"{without_password(uri)} is no address of a server"
        return Finding(
            f"MLflow: {reason.partition('; ')[0]}. Until then reports wait on disk; unset {URI_VARIABLE} else"
        )
    return fine(f"MLflow's server {without_password(uri)} answers")

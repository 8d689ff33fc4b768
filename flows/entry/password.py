"""The password of this project's servers. It lies in one file, and whoever can read that file may use the servers.

Every account of a host can reach the host's loopback interface, and whoever can give Prefect's server a flow run can
run commands as the owner of its worker. Therefore Prefect's and MLflow's servers ask for a password. It is made at
random when it is first needed, and kept in `.sana15/password`, which only its owner can read. Copies of the project
under `runs/` use the password of the project.
"""

import os
import secrets
import stat
import tempfile
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from flows.entry.project_servers import is_own_server
from tasks.system.errors import UserError
from tasks.system.files import private_folder
from tasks.system.paths import STATE, main_project

USER = "sana15"
PASSWORD = STATE / "password"
API_VARIABLE = "PREFECT_API_URL"
CLIENT_PASSWORD_VARIABLE, SERVER_PASSWORD_VARIABLE = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"


def password_file() -> Path:
    """The file with the password of the project that the working directory belongs to."""
    return main_project(Path.cwd()) / PASSWORD


def credentials() -> str:
    """`sana15:<password>`, the form that HTTP's basic authentication takes. Prefect calls it an auth string.

    The password is made if there is none yet. Raises UserError if the file cannot be written or read, or if other
    accounts may read it.
    """
    path = password_file()
    try:
        private_folder(path.parent)
        if not path.exists():
            _write_once(path, f"{USER}:{secrets.token_urlsafe(32)}\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): work in a project of your own") from None
    return read_password(path)


def _write_once(path: Path, text: str) -> None:
    """Write a file that only its owner can read, unless another process is first.

    The text is written to a temporary file, which is then linked to `path`, so that no reader finds half a password.
    """
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # tempfile gives it mode 0600
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def read_password(path: Path) -> str:
    """The line in the file. Raises UserError if `path` is a link, or if other accounts may read the file."""
    way_out = "run make down, delete it, then make up, which makes another"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # a link could lead to a file of somebody else
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {way_out}") from None
    with open(descriptor, encoding="utf-8") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise UserError(f"{path} may be read by others, who could run commands as you: {way_out}")
        line = file.read().strip()
    if not line.startswith(f"{USER}:") or line == f"{USER}:":
        raise UserError(f"{path} does not hold {USER}:<password>: {way_out}")
    return line


def refuse_server_in_settings_file() -> None:
    """Raises UserError if a file of Prefect's settings names a server, since Prefect would send it our password.

    `set_prefect_password` sees only the environment: it takes such a server for the temporary one.
    """
    from prefect.settings import get_current_settings  # this module itself must be imported before Prefect

    if not os.environ.get(API_VARIABLE) and (url := get_current_settings().api.url):
        raise UserError(f"a file of Prefect's settings names the server {url}: name it in {API_VARIABLE} instead")


def wrong_password_message(url: str) -> str:
    """The line for a user whose password is not accepted by Prefect's server at `url`."""
    return (
        f"Prefect at {url} does not accept the password: {CLIENT_PASSWORD_VARIABLE} must hold its own (docs/cluster.md)"
    )


def set_prefect_password(environment: MutableMapping[str, str]) -> None:
    """Put the credentials into the variables that Prefect reads, but only for a server of this project.

    Without `PREFECT_API_URL`, Prefect starts a temporary server with the flow. Then both variables are set: the server
    asks for the password and the flow knows it. If `PREFECT_API_URL` names a server, credentials that the environment
    already has are left as they are. Otherwise the project's credentials are set only if `make up` has started that
    server here, since any other server would learn them. Raises UserError as `credentials` does.
    """
    if not (url := environment.get(API_VARIABLE)):
        environment[CLIENT_PASSWORD_VARIABLE] = environment[SERVER_PASSWORD_VARIABLE] = credentials()
    elif not environment.get(CLIENT_PASSWORD_VARIABLE):
        if is_own_server(url):
            environment[CLIENT_PASSWORD_VARIABLE] = credentials()

"""Who may talk to this project's servers: whoever can read one file of it.

Every account of a host can reach its loopback interface, and whoever can give Prefect's server a flow run can run
commands as the worker's owner. So Prefect's and MLflow's servers ask for a password. It is made at random when it is
first needed, and kept in `.sana15/password` for its owner alone. Copies of the project under `runs/` use that of the
project.
"""

import os
import secrets
import stat
import tempfile
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from flows.entry.own_servers import is_own_server
from tasks.system.errors import UserError
from tasks.system.files import private_folder
from tasks.system.paths import STATE, main_project

USER = "sana15"
PASSWORD = STATE / "password"
API_VARIABLE = "PREFECT_API_URL"
CLIENT_VARIABLE, SERVER_VARIABLE = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"


def password_file() -> Path:
    """Where the password of the project around the working directory lies."""
    return main_project(Path.cwd()) / PASSWORD


def credentials() -> str:
    """`sana15:<password>`, which is what HTTP's basic authentication takes and Prefect calls an auth string.

    The password is made if there is none yet. Raises UserError if it cannot be, or if others know it.
    """
    path = password_file()
    try:
        private_folder(path.parent)
        if not path.exists():
            _write_once(path, f"{USER}:{secrets.token_urlsafe(32)}\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): work in a project of your own") from None
    return _read_own(path)


def _write_once(path: Path, text: str) -> None:
    """Write a file for its owner alone, unless another process is first: it is whole as soon as it is there."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # which only its owner may read
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def _read_own(path: Path) -> str:
    """The file's line. Raises UserError if it is not a file that this user alone may read."""
    way_out = "run make down, delete it, then make up, which makes another"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
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


def refuse_server_of_settings() -> None:
    """Raises UserError if a file of Prefect's settings names a server: it would be given this project's password."""
    from prefect.settings import get_current_settings  # who asks has imported it

    if not os.environ.get(API_VARIABLE) and (url := get_current_settings().api.url):
        raise UserError(f"a file of Prefect's settings names the server {url}: name it in {API_VARIABLE} instead")


def refusal(url: str) -> str:
    """What to say where Prefect's server at `url` does not accept the password."""
    return f"Prefect at {url} does not accept the password: {CLIENT_VARIABLE} must hold its own (docs/cluster.md)"


def tell_prefect(environment: MutableMapping[str, str]) -> None:
    """Put the credentials where Prefect looks for them, but only for a server that is this project's own.

    Without `PREFECT_API_URL` that is a temporary one, which is begun with the flow and asks for them too. A server that
    `PREFECT_API_URL` names gets those that the environment has, or the project's if `make up` has started it here: on
    another one they would be in foreign hands. Raises UserError.
    """
    if not (url := environment.get(API_VARIABLE)):
        environment[CLIENT_VARIABLE] = environment[SERVER_VARIABLE] = credentials()
    elif not environment.get(CLIENT_VARIABLE):
        if is_own_server(url):
            environment[CLIENT_VARIABLE] = credentials()

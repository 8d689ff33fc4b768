"""The project's password: made once, for its owner's eyes alone, and told to no server but the project's own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.entry.password import PASSWORD, credentials, set_prefect_password
from flows.servers import Server, start, stop
from tasks.system.errors import UserError
from tasks.system.files import private_folder
from tasks.tracking.mlflow_store import connect
from tests.helpers.other_account import as_another_account
from tests.helpers.patience import PATIENCE_SECONDS
from tests.helpers.project_folder import plain_environment, project_folder, python

CLIENT, SERVER = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"
SAY = "from flows.entry.password import credentials; print(credentials())"


@pytest.fixture
def project() -> Iterator[Path]:
    """A project's folder that every account can enter, as the working directory."""
    with project_folder() as root:
        yield root


def test_processes_that_begin_at_once_have_one_password(project: Path) -> None:
    command = [sys.executable, "-c", SAY]
    every = [subprocess.Popen(command, env=plain_environment(), stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = {process.communicate(timeout=PATIENCE_SECONDS)[0].strip() for process in every}
    assert said == {(project / PASSWORD).read_text().strip()}
    assert os.listdir(project / PASSWORD.parent) == [PASSWORD.name]


def test_another_account_cannot_read_the_password(project: Path) -> None:
    (project / PASSWORD.parent).mkdir(mode=0o755)
    credentials()
    assert (project / PASSWORD).stat().st_mode & 0o777 == 0o600
    assert (project / PASSWORD.parent).stat().st_mode & 0o777 == 0o700
    (project / "public").write_text("for all")
    assert as_another_account("print(open('public').read())").stdout == "for all\n"
    if os.geteuid() == 0:
        refused = as_another_account(f"print(open({str(PASSWORD)!r}).read())")
        assert "PermissionError" in refused.stderr and refused.stdout == ""


def test_a_password_that_others_may_know_is_refused_with_one_line(project: Path) -> None:
    credentials()
    path, whole = project / PASSWORD, (project / PASSWORD).read_text()
    path.chmod(0o640)
    done = python("import flows.entry.prefect_environment")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"{path} may be read by others" in done.stderr and "make down, delete it, then make up" in done.stderr
    path.unlink()
    (project / "elsewhere").write_text(whole)
    (project / "elsewhere").chmod(0o600)
    path.symlink_to(project / "elsewhere")
    with pytest.raises(UserError, match="cannot be read"):
        credentials()
    path.unlink()
    path.touch(0o600)
    with pytest.raises(UserError, match="does not hold sana15:<password>"):
        credentials()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another account")
def test_a_password_that_belongs_to_another_account_is_refused(project: Path) -> None:
    credentials()
    os.chown(project / PASSWORD, 65534, -1)
    with pytest.raises(UserError, match="may be read by others"):
        credentials()


def test_a_copy_of_the_project_has_the_project_s_password(project: Path) -> None:
    own, copy = credentials(), project / "runs/points/key"
    copy.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (copy / name).touch()
    os.chdir(copy)
    assert credentials() == own and not (copy / PASSWORD).exists()


def test_without_a_server_s_address_a_temporary_one_and_its_clients_get_the_project_s_password(project: Path) -> None:
    environment = {CLIENT: "of some other server"}
    set_prefect_password(environment)
    assert environment == {CLIENT: credentials(), SERVER: credentials()}


@pytest.mark.parametrize("url", ["http://head:4200/api", "http://127.0.0.1:4200/api", "http://127.0.0.1:none/api"])
def test_a_server_elsewhere_gets_no_password_but_the_one_that_the_environment_has(project: Path, url: str) -> None:
    for given in ({}, {CLIENT: "of its own"}):
        environment = {"PREFECT_API_URL": url} | given
        set_prefect_password(environment)
        assert environment == {"PREFECT_API_URL": url} | given
    assert not (project / PASSWORD).exists()


def test_the_password_goes_to_the_port_of_the_project_s_own_server_and_only_while_that_has_it(project: Path) -> None:
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        listen = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
        own = Server("prefect", (sys.executable, "-c", listen + "import time; time.sleep(3000)"), 1)
        start(own)
        try:
            while not (port := own.log.read_text().strip()):
                assert own.process() is not None
                time.sleep(0.05)
            for address, told in (
                (f"127.0.0.1:{port}", True),
                (f"localhost:{port}", False),  # may be ::1, which is anybody's
                (f"127.0.0.1:{foreign.getsockname()[1]}", False),
            ):
                environment = {"PREFECT_API_URL": f"http://{address}/api"}
                set_prefect_password(environment)
                assert environment.get(CLIENT) == (credentials() if told else None)
        finally:
            stop(own)
    environment = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    set_prefect_password(environment)
    assert CLIENT not in environment


def test_a_server_that_only_a_file_of_settings_names_is_refused_before_it_is_told_anything(project: Path) -> None:
    (project / "prefect.toml").write_text('[api]\nurl = "http://head:4200/api"\n')
    done = python("import sys; from flows.full_pipeline import main; sys.exit(main([]))")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "http://head:4200/api: name it in PREFECT_API_URL instead" in done.stderr


def test_a_store_of_an_earlier_version_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow_database: Path
) -> None:
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    connect()
    database, artifacts = tmp_path / "mlflow.db", tmp_path / "mlartifacts"
    database.chmod(0o644)
    artifacts.chmod(0o755)
    connect()
    assert (database.stat().st_mode & 0o777, artifacts.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_folder_that_others_could_enter_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for name in ("open", "new/below"):
        private_folder(tmp_path / name)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700

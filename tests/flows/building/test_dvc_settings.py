"""Damaged settings of DVC stop a run with the name of the file and the way out; a copy's own are written anew."""

from pathlib import Path

import pytest
from dvc.config import Config

from flows.building.dvc_settings import read_dvc_settings
from flows.building.workspace import share_cache
from tasks.system.errors import UserError


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose DVC has a remote."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = disk\n['remote \"disk\"']\n    url = /disk\n")
    return tmp_path


GARBAGE = (b"[core\n", b"\xff\xfe\x00[", b"[core]\n    no_such_key = 1\n", b"= 7\n", b"[cache]\n    type = [[\n")


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(
    ("name", "way_out"), [("config", "git checkout .dvc/config"), ("config.local", "delete it, and set again")]
)
def test_damaged_settings_of_dvc_are_named_with_the_way_out(
    project: Path, name: str, way_out: str, garbage: bytes
) -> None:
    (project / ".dvc" / name).write_bytes(garbage)
    with pytest.raises(UserError) as raised:
        read_dvc_settings(project)
    line = str(raised.value)
    assert line.startswith(f"{project / '.dvc' / name} is damaged (") and way_out in line and "\n" not in line


def test_settings_that_are_whole_or_missing_are_read(project: Path) -> None:
    assert read_dvc_settings(project)["remote"]["disk"]["url"] == "/disk"
    (project / ".dvc/config").unlink()
    assert read_dvc_settings(project)["remote"] == {}


def test_a_copy_whose_own_settings_are_damaged_gets_them_anew(project: Path, tmp_path: Path) -> None:
    (copy := tmp_path / "runs/smoke").mkdir(parents=True)
    share_cache(project, copy)
    whole = (copy / ".dvc/config.local").read_bytes()
    (copy / ".dvc/config.local").write_bytes(b"[core\n")
    share_cache(project, copy)
    assert (copy / ".dvc/config.local").read_bytes() == whole
    assert Config(str(copy / ".dvc"))["remote"]["disk"]["url"] == "/disk"

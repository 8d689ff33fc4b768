"""Reads DVC's settings of a workspace, `.dvc/config` and `.dvc/config.local`, and names the file that is damaged."""

from pathlib import Path

from dvc.config import Config, ConfigError

from tasks.system.errors import UserError

FOLDER = ".dvc"
WAYS_OUT = {
    "config": "take it back from git (git checkout .dvc/config)",
    "config.local": "delete it, and set again what it held (dvc remote modify --local)",
}
"""The files of settings, each with what to do if it is damaged."""


def read_dvc_settings(root: Path) -> Config:
    """The settings of the workspace `root`, of which a file may be missing.

    Raises UserError, which names the damaged file and what to do.
    """
    for name, way_out in WAYS_OUT.items():
        path = root / FOLDER / name
        try:
            Config.validate(Config.load_file(str(path)))
        except FileNotFoundError:
            continue
        except OSError:
            raise
        except Exception as error:  # on garbage DVC's parser fails in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path} is damaged ({reason}): {way_out}") from None
    try:
        return Config(str(root / FOLDER), validate=True)
    except ConfigError as error:
        raise UserError(
            f"{root / FOLDER}: DVC's settings do not fit together: {' '.join(str(error).split())}"
        ) from None

"""What lies in a folder in which files of a model were looked for in vain, for the message that says so."""

from pathlib import Path

SHOWN_FILES = 8


def contents_of(folder: Path) -> str:
    """The names of a folder's first files and folders, for a message: `config.json, model.fp16.safetensors`."""
    if not folder.is_dir():
        return "nothing, since it is no folder" if folder.exists() else "nothing, since it does not exist"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return shortened(names, SHOWN_FILES) if names else "nothing"


def shortened(names: list[str], shown: int) -> str:
    """The first names, and how many there are in all if some are left out."""
    return ", ".join(names) if len(names) <= shown else f"{', '.join(names[:shown])}, ... ({len(names)} in all)"

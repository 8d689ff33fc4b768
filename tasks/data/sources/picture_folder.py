"""A folder of pictures with captions as a source.

The folder is searched with all folders below it. A picture's caption is its row in a `metadata.jsonl` in its folder or
above it (`{"file_name": "cat.png", "text": "a cat"}`, where the name is relative to that file). Without a row, the
caption is the `.txt` beside the picture (`cat.txt`). A picture's key is its path without its suffix.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from tasks.data.sources.picture_candidate import (
    Candidate,
    Reject,
    clean_caption,
    decode_text,
    is_utf8,
    parse_json,
    reject_duplicates,
    rejected,
    unnameable,
)
from tasks.system.errors import UserError

METADATA = "metadata.jsonl"
READABLE = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
# Pictures that cannot be read here. They must be named as rejects, not passed over in silence.
UNREADABLE = {".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".tga"}


def folder_candidates(folder: Path) -> list[Candidate]:
    """Every picture in and below `folder`, every row of metadata and every caption file, sorted by path.

    Rows and caption files that belong to no picture are candidates that read as rejects. Hidden files, and files that
    are neither picture nor caption, are passed over. Raises UserError if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"params.yaml: shard.path {folder} is no folder: name one that holds pictures and captions")
    listed = _list_files(folder)
    files = [name for name in listed if is_utf8(name)]
    strange = [unnameable(name) for name in listed if not is_utf8(name)]
    captions, unusable = _read_metadata(folder, [name for name in files if PurePosixPath(name).name == METADATA], files)
    texts = {name for name in files if name.endswith(".txt")}
    pictures = [name for name in files if _is_picture(name, texts, captions)]
    unused = texts - {_text_name(name) for name in pictures}
    orphans = [rejected(name, name, "caption without a picture") for name in unused]
    found = [Candidate(_key(name), name, partial(_read, folder, name, captions.get(name))) for name in pictures]
    return reject_duplicates(sorted([*found, *unusable, *orphans, *strange], key=lambda candidate: candidate.where))


def files_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files in and below a folder that are not hidden, in any order, as they are found.

    Links to folders are not followed, and folders that may not be read are passed over, as in `folder_candidates`.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except PermissionError:
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_dir():
                    yield entry


def count_pictures(folder: Path) -> int:
    """The number of files in and below a folder that are pictures by their suffix. None is opened."""
    return sum(PurePosixPath(entry.name).suffix.lower() in READABLE for entry in files_below(folder))


def _list_files(folder: Path) -> list[str]:
    """The paths of all files that are not hidden, relative to `folder`, with forward slashes."""
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(root).relative_to(folder)
        names += [(base / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _is_picture(name: str, texts: set[str], captions: dict[str, str]) -> bool:
    """Whether a file is a picture: by its suffix, by a row of metadata, or by a caption file beside it."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in READABLE | UNREADABLE or name in captions:
        return True
    return suffix not in (".txt", ".jsonl", "") and _text_name(name) in texts


def _read_file(path: Path) -> bytes:
    """The bytes of a file. Raises Reject if it is a broken link, a pipe, a device, or may not be read."""
    if not path.is_file():  # reading a pipe would wait for ever
        raise Reject("it is no file that can be read, or a link to one that is gone")
    try:
        return path.read_bytes()
    except OSError as error:
        raise Reject(f"it cannot be read: {error.strerror}") from None


def _key(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _text_name(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def _read(folder: Path, name: str, caption: str | None) -> tuple[bytes, str]:
    """A picture's bytes and caption. `caption` is the picture's row of metadata, or None if it has none."""
    if caption is None:
        text = folder / _text_name(name)
        if not text.is_file():
            raise Reject(f"no caption: neither {text.name} nor a row of {METADATA}")
        caption = decode_text(_read_file(text))
    return _read_file(folder / name), clean_caption(caption)


def _read_metadata(folder: Path, tables: list[str], files: list[str]) -> tuple[dict[str, str], list[Candidate]]:
    """Captions by picture, from all metadata files (`tables`), and a reject for each row that cannot be used."""
    captions: dict[str, str] = {}
    unusable: list[Candidate] = []
    known = set(files)
    for table in tables:
        try:
            lines = _read_file(folder / table).splitlines()
        except Reject as reject:
            unusable.append(rejected(table, table, str(reject)))
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, text = _parse_row(PurePosixPath(table).parent, line)
                if name not in known:
                    raise Reject(f"{name.encode(errors='backslashreplace').decode()} is not there")
                if name in captions:
                    raise Reject(f"{name} has a row already")
                captions[name] = text
            except Reject as reject:
                where = f"{table}:{number}"
                unusable.append(rejected(where, where, str(reject)))
    return captions, unusable


def _parse_row(base: PurePosixPath, line: bytes) -> tuple[str, str]:
    """The picture's path relative to the source's folder, and its caption, from a line of metadata in folder `base`."""
    row = parse_json(line, "row")
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("file_name", "text")):
        raise Reject("row has no file_name and text")
    return (base / row["file_name"]).as_posix(), row["text"]

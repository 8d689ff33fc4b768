"""The list of shards in SANA's own layout, `wids-meta.json`. `tasks.data.sources.sana_shards` describes the layout.

It is a module of its own, which imports no library, so that a flow can look at the list before any work.
"""

import json
from pathlib import Path
from typing import Any

from tasks.system.errors import UserError

META = "wids-meta.json"
KIND = "SANA-WebDataset"
VERSION = 1


def read_shard_list(path: Path) -> list[dict[str, Any]]:
    """The entries of the metadata file `path`, one for each shard.

    Raises UserError if it is missing or not SANA's, or if an entry lacks a field.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: shard.source sana needs it; take webdataset for shards without it")
    meta = read_mapping(path)
    kind, version = meta.get("__kind__"), meta.get("wids_version")
    if (kind, version) != (KIND, VERSION):
        raise UserError(f"{path} is of kind {kind!r}, version {version!r}: it must be {KIND!r}, version {VERSION}")
    entries = meta.get("shardlist")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} lists no shards: write it again for the tars beside it")
    for number, entry in enumerate(entries):
        _check_entry(entry, f"{path}: shardlist[{number}]")
    if len({entry["url"] for entry in entries}) < len(entries):
        raise UserError(f"{path} lists a shard twice: write it again for the tars beside it")
    return entries


def _check_entry(entry: Any, where: str) -> None:
    needed = {"url": str, "nsamples": int, "filesize": int}
    if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in needed.items()):
        raise UserError(f"{where} is {entry!r}: it needs a url, nsamples and filesize")
    if "://" in entry["url"] or not entry["url"].endswith(".tar"):
        raise UserError(f"{where} has the url {entry['url']!r}: it must name a .tar in the folder; fetch it first")


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError if the file is not JSON, or holds no mapping."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # the second of JSON or of UTF-8
        raise UserError(f"{path} is not valid JSON ({error}): fetch or write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no mapping: fetch or write it again")
    return value

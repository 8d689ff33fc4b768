"""Loads transformers' model folders from disk. It uses no network and no pickles, and leaves no weights random."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import logging

from model.finite_numbers import check_finite_weights
from tasks.data.stage_models import loading_models
from tasks.system.errors import UserError

logging.disable_progress_bar()  # loading shows bars of its own, also where output is piped


def load_parts(
    folder: Path, what: str, model_type: str, files: Sequence[Sequence[str]], classes: Sequence[Any]
) -> list[Any]:
    """A folder's model (the first of `classes`, frozen, float32) and its other parts (the other classes).

    `what` names the model in messages. config.json must say `model_type`. Each entry of `files` lists alternatives, of
    which one must be there. Raises UserError, in one line, naming the folder and what is wrong with it: a missing file,
    a missing weight, or one that is not finite.
    """
    folder = Path(folder)
    for names in (("config.json",), *files):
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{folder} holds no {what}: {' or '.join(names)} is missing")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if found != model_type:
            raise UserError(f"{folder} holds no {what}: its config.json is of a {found!r} model")
        model, report = classes[0].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        parts = [part.from_pretrained(folder, local_files_only=True) for part in classes[1:]]
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no {what}: {' '.join(str(error).split())}") from None
    if lacking := sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])]):
        raise UserError(f"{folder} lacks {len(lacking)} weights of its {what}, {lacking[0]} first: copy it again")
    with loading_models():
        check_finite_weights(dict(model.named_parameters()), folder)
    return [model.eval().requires_grad_(False), *parts]

"""Checks that the paths in params.yaml lead to what they should, before any work is done.

The stage that reads a file checks it thoroughly, but it may run hours after the start. The checks here open little, so
that they take no more than a second or two, also on a million pictures. They look for files by their names, and read
configurations, lists of shards and files of prompts. All paths are checked before one line names those that are wrong.
"""

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.data.sources.picture_folder import METADATA, files_below
from tasks.data.sources.sana_shard_list import META, read_shard_list
from tasks.params.experiment_params import Params
from tasks.params.user_files import own_path, paths_of
from tasks.stages import Stage
from tasks.system.errors import UserError

WEIGHTS = ("*.safetensors",)
LEAST_PICTURES = 2
"""One picture is held out, and one is left to train on."""

Check = Callable[[Path], str]
"""Says in a line what is wrong with the file or folder at a path, and what to do. It says nothing if all is well."""


@dataclass(frozen=True)
class ModelFolder:
    """What the folder of a published model must hold.

    `model` names the model in messages. Each entry of `files` lists patterns of names, of which one must match a file.
    `said` is a key of the folder's config.json with the value that it must have; None asks for no value.
    """

    model: str
    files: tuple[tuple[str, ...], ...]
    said: tuple[str, str] | None = None

    def __call__(self, folder: Path) -> str:
        """What is wrong with the folder."""
        if not folder.is_dir():
            return f"{folder} is no folder: name one that holds {self.model}"
        for patterns in (("config.json",), *self.files, WEIGHTS):
            if not any(any(folder.glob(pattern)) for pattern in patterns):
                return f"{folder} holds no {' or '.join(patterns)}: name a folder that holds {self.model}"
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{folder / 'config.json'} cannot be read ({error}): download it again"
        key, value = self.said or ("", None)
        if not isinstance(config, dict) or config.get(key) != value:
            return f"{folder / 'config.json'} is not of {self.model}: name a folder that holds one"
        return ""


def check_weights(place: Path) -> str:
    """What is wrong with weights to start from: a file, a folder of diffusers, or the folder of a whole pipeline."""
    if place.is_file():
        return "" if place.stat().st_size else f"{place} is empty: download it again"
    folder = place / "transformer" if (place / "transformer").is_dir() else place
    if not folder.is_dir():
        return f"{place} is neither a file nor a folder: name a .pth, a .safetensors or a folder of diffusers"
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return f"{folder} holds no *.safetensors: name a .pth, a .safetensors or a folder of diffusers"
    return ""


def check_prompts(file: Path) -> str:
    """What is wrong with a file of prompts. Each line of a .jsonl must be a JSON object."""
    if not file.is_file():
        return f"{file} is no file: name one that holds prompts"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return f"{file} cannot be read ({error}): name a file of prompts"
    if not any(line.strip() for line in lines):
        return f"{file} is empty: name a file of prompts"
    for number, line in enumerate(lines, start=1) if file.suffix == ".jsonl" else ():
        if line.strip() and not _is_json_object(line):
            return f"{file} line {number} is no JSON object: each line must hold one prompt, as GenEval's do"
    return ""


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def check_torchscript(file: Path) -> str:
    """What is wrong with a TorchScript file, which is a zip archive with a folder `code`."""
    if not file.is_file():
        return f"{file} is no file: name a TorchScript file of Inception"
    if not zipfile.is_zipfile(file):
        return f"{file} is no TorchScript file: name one of Inception"
    with zipfile.ZipFile(file) as archive:
        has_code = any("/code/" in name for name in archive.namelist())
    return "" if has_code else f"{file} is no TorchScript file, though torch may have written it: name one of Inception"


def check_questions(file: Path) -> str:
    """What is wrong with a file of DPG-Bench's questions. It is read whole, which takes a fraction of a second."""
    from tasks.evaluation.dpg_bench import read_questions  # numpy is not needed where there are no questions

    try:
        return "" if all(prompt.text for prompt in read_questions(file)) else f"{file} has a prompt without a text"
    except UserError as error:
        return str(error)


def check_picture_folder(folder: Path) -> str:
    """What is wrong with a folder of pictures and captions. It is searched until enough of both is found."""
    if not folder.is_dir():
        return f"{folder} is no folder: name one that holds pictures and captions"
    pictures, captions = 0, False
    for entry in files_below(folder):
        # Any other file may be a picture, whatever its suffix, if a caption belongs to it.
        is_caption = entry.name == METADATA or entry.name.endswith(".txt")
        captions, pictures = captions or is_caption, pictures + (not is_caption)
        if captions and pictures >= LEAST_PICTURES:
            return ""
    if pictures < LEAST_PICTURES:
        return f"{folder} holds {pictures or 'no'} pictures: at least {LEAST_PICTURES} are needed, one to hold out"
    return f"{folder} holds no captions: add a .txt beside each picture, or a {METADATA}"


def check_shards(place: Path) -> str:
    """What is wrong with WebDataset shards: one .tar, or a folder that holds some. The first one found is opened."""
    if place.is_file():
        found: Path | None = place
    elif place.is_dir():
        found = next((Path(entry.path) for entry in files_below(place) if entry.name.endswith(".tar")), None)
    else:
        return f"{place} is neither a file nor a folder: name a .tar or a folder of them"
    if found is None:
        return f"{place} holds no .tar: name a shard or a folder of them"
    return "" if tarfile.is_tarfile(found) else f"{found} is no tar: write or fetch the shard again"


def check_sana_shards(folder: Path) -> str:
    """What is wrong with shards in SANA's own layout. Every shard that its list names must be there."""
    try:
        names = [entry["url"] for entry in read_shard_list(folder / META)]
    except UserError as error:
        return str(error)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        return f"{folder} lacks {len(missing)} shards that {META} lists, {missing[0]} first: fetch them"
    return ""


def check_exists(place: Path) -> str:
    """What is wrong with a path of which nothing more is known."""
    return "" if place.exists() else f"{place} does not exist: correct the path"


PICTURES: dict[str, Check] = {
    "folder": check_picture_folder,
    "webdataset": check_shards,
    "sana": check_sana_shards,
}
"""The check of `shard.path`, and of the path of a set in `data.sets`, by its source."""

PROCESSOR = ("preprocessor_config.json",)
CHECKS: dict[str, Check] = {
    "autoencoder.path": ModelFolder("a diffusers AutoencoderDC", (), ("_class_name", "AutoencoderDC")),
    "text_encoder.path": ModelFolder("a Gemma-2 and its tokenizer", (("tokenizer.json", "tokenizer.model"),)),
    "pretrain.path": check_weights,
    "judge.path": ModelFolder("a vision-language model", ()),
    "judge_finetune.path": ModelFolder("a vision-language model", ()),
    "geneval.mask2former_path": ModelFolder("a Mask2Former", (PROCESSOR,), ("model_type", "mask2former")),
    "geneval.clip_path": ModelFolder("a CLIP", (PROCESSOR, ("tokenizer.json", "vocab.json")), ("model_type", "clip")),
    "geneval.prompts": check_prompts,
    "evaluation.features_path": ModelFolder("a CLIP or a DINO", (PROCESSOR,)),
    "evaluation.inception_path": check_torchscript,
    "evaluation.dpg_questions": check_questions,
}
"""The checks of the other keys of params.yaml that name a path of the user's."""


def refuse_wrong_paths(runs: Iterable[tuple[Iterable[Stage], Params]]) -> None:
    """Raise UserError, in one line, if paths that the stages of these runs read do not lead to what they should.

    A run is its stages and its params. A path that several runs share is checked once.
    """
    checks = dict.fromkeys(found for stages, params in runs for found in _named_paths(stages, params))
    wrong = [f"{key}: {problem}" for key, path, check in checks if (problem := check(own_path(path)))]
    if wrong:
        raise UserError("params.yaml: " + "; ".join(wrong))


def _named_paths(stages: Iterable[Stage], params: Params) -> Iterator[tuple[str, str, Check]]:
    """The key, the path and the check of each path that stages read."""
    for key in dict.fromkeys(key for stage in stages for key in stage.user_files):
        for path in paths_of([key], params):
            yield key, path, _check_of(key, params)


def _check_of(key: str, params: Params) -> Check:
    """The check of the path that a key of params names."""
    if key == "shard.path":
        return PICTURES[params.shard.source]
    if key.startswith("data.sets."):
        return PICTURES[params.shard_of(key.split(".")[2]).source]
    return CHECKS.get(key, check_exists)

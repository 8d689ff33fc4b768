"""Shards in the layout of SANA's own training data as a source.

The folder holds `*.tar` and `wids-meta.json`, which lists them: {"name", "__kind__": "SANA-WebDataset",
"wids_version": 1, "shardlist": [{"url", "nsamples", "filesize"}, ...]}. Shards that it does not list are left out. A
sample is `<key>.json` with height, width and prompt, and a picture.

Further captions of a shard lie beside it. For each of shard.caption_suffixes, `<shard><suffix>.json` holds
{key: {caption type: text}}, and `<shard><suffix>_clip_score.json` holds CLIP scores, {key: {caption type: "27.10"}}.
The sample's own prompt is a caption of type "prompt", with a score like the others. A caption of type "prompt" in one
of these files does not replace it, but has the file's suffix as its type (`_named_by_suffix`). `choose_caption` chooses
one of them.

Pictures are cropped by their own size. The json must have height and width, but they may be the size of an original.
Latents (`<key>.npy`) are not used, because the autoencoder that made them is not on record. A sample with latents and
without a picture is a reject.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks.computing.seeds import numpy_generator
from tasks.data.sources.picture_candidate import (
    Candidate,
    LeftOut,
    Reject,
    clean_caption,
    is_utf8,
    parse_json,
    reject_duplicates,
    unnameable,
)
from tasks.data.sources.sana_shard_list import META, read_mapping, read_shard_list
from tasks.data.tar_shard import TarShard
from tasks.system.errors import UserError

SCORES = "_clip_score"
PROMPT = "prompt"
PICTURES = ("png", "jpg", "jpeg", "webp")
LEAST_TEMPERATURE = 0.01
"""Lower temperatures count as this: the best caption is taken nearly always, and nothing is divided by 0."""


@dataclass(frozen=True)
class CaptionChoice:
    """How a sample's captions are chosen: suffixes of the caption files, the rule's parameters and the seed.

    `proportions` has the weight of each type of caption; if it is empty, weights follow from the scores. At most `kept`
    captions are kept of a sample. Samples whose best caption scores below `least_score`, or whose prompt scores below
    `least_prompt_score`, are left out.
    """

    suffixes: tuple[str, ...]
    threshold: float
    temperature: float
    seed: int
    proportions: Mapping[str, float] = field(default_factory=dict)
    kept: int = 1
    least_score: float | None = None
    least_prompt_score: float | None = None


def sana_candidates(folder: Path, choice: CaptionChoice) -> list[Candidate]:
    """Every sample of the listed shards, in the order of the list. A key that an earlier sample has reads as a reject.

    Raises UserError if the metadata is missing, of another kind or wrong about a shard, if a shard is missing or
    damaged, or if no file with one of the suffixes lies beside a shard.
    """
    candidates = []
    for entry in read_shard_list(folder / META):
        shard = _SanaShard(folder, entry, choice.suffixes)
        candidates += [
            Candidate(
                key,
                f"{shard.name}:{key}",
                partial(_read, shard, sample, choice),
                partial(_kept_captions, shard, sample, choice) if choice.kept > 1 else None,
            )
            if is_utf8(f"{shard.name}:{key}")
            else unnameable(f"{shard.name}:{key}")
            for sample, key in enumerate(shard.tar.keys)
        ]
    return reject_duplicates(candidates)


def choose_caption(captions: Mapping[str, str], scores: Mapping[str, float], key: str, choice: CaptionChoice) -> str:
    """The type of the caption that is drawn of a sample: a function of seed, key, captions and scores alone."""
    kinds, weights = zip(*caption_weights(captions, scores, choice).items(), strict=True)
    # Of the number of types: as an array of text NumPy would lose a NUL at the end of a type's name.
    return kinds[numpy_generator(choice.seed, "caption", key).choice(len(kinds), p=weights)]


def caption_weights(
    captions: Mapping[str, str], scores: Mapping[str, float], choice: CaptionChoice
) -> dict[str, float]:
    """The probability of each type of caption that may be drawn, in the order of their names.

    With fixed proportions these are the weights of the types that the sample has; if it has none, the prompt is taken.

    By scores, one of the captions that score at least the threshold is drawn, with probability proportional to
    score ** (1 / temperature). That is the published code's rule. SANA section 2.3 states exp(score / temperature)
    instead, which at scores about 27 and a temperature of 0.1 would nearly always take the best. If no caption reaches
    the threshold, the one with the best score is taken. If none has a score, it is the prompt.
    """
    if choice.proportions:
        given = {kind: choice.proportions.get(kind, 0.0) for kind in sorted(captions)}
        total = sum(given.values())
        return {kind: weight / total for kind, weight in given.items() if weight > 0} or {PROMPT: 1.0}
    scored = {kind: scores[kind] for kind in sorted(scores) if kind in captions}
    if not scored:
        return {PROMPT: 1.0}
    good = [kind for kind, score in scored.items() if score >= choice.threshold]
    if not good:
        return {max(scored, key=lambda kind: scored[kind]): 1.0}
    relative = np.array([scored[kind] for kind in good]) / max(scored.values())  # at most 1, so no power overflows
    weights = relative ** (1 / max(choice.temperature, LEAST_TEMPERATURE))
    return dict(zip(good, (weights / weights.sum()).tolist(), strict=True))


class _SanaShard:
    """A shard, and the files of captions and scores beside it.

    Raises UserError if the shard, or one of its files, is missing or does not fit the metadata.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any], suffixes: tuple[str, ...]) -> None:
        self.name = str(entry["url"])
        path = folder / self.name
        if not os.path.isfile(path):  # False too for a name that no file can have
            raise UserError(f"{path} is missing: {META} lists it; fetch it or write {META} again")
        size = path.stat().st_size
        if size != entry["filesize"]:
            raise UserError(f"{path} has {size} bytes, {META} says {entry['filesize']}: fetch one of them again")
        self.tar = TarShard(path)
        if len(self.tar) != entry["nsamples"]:
            found = f"{len(self.tar)} samples"
            raise UserError(f"{path} has {found}, {META} says {entry['nsamples']}: fetch one of them again")
        self._files = {suffix: _side_files(path, suffix) for suffix in suffixes}

    @cached_property
    def captions(self) -> dict[str, dict[str, Any]]:
        """The captions of every key, by caption type."""
        return _merged(
            (captions, partial(_named_by_suffix, suffix=suffix)) for suffix, (captions, _) in self._files.items()
        )

    @cached_property
    def scores(self) -> dict[str, dict[str, Any]]:
        """The CLIP scores of every key, by caption type."""
        return _merged((scores, dict) for _, scores in self._files.values())


def _side_files(shard: Path, suffix: str) -> tuple[Path | None, Path | None]:
    """A shard's files of captions and of scores with one suffix. One may be None; if both are, raises UserError."""
    captions = shard.with_name(f"{shard.stem}{suffix}.json")
    scores = shard.with_name(f"{shard.stem}{suffix}{SCORES}.json")
    if not captions.is_file() and not scores.is_file():
        raise UserError(
            f"{shard} has neither {captions.name} nor {scores.name} beside it: "
            f"fetch them or take {suffix!r} out of shard.caption_suffixes"
        )
    return captions if captions.is_file() else None, scores if scores.is_file() else None


def _named_by_suffix(captions: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """The captions that a file with this suffix adds to one sample, by caption type.

    A caption of type "prompt" gets the suffix as its type, and the file's other captions of the sample are left out, as
    in the published code's dataset of several sizes (`SanaWebDatasetMS.getdata`).
    """
    return {suffix.replace(".", "_"): captions[PROMPT]} if PROMPT in captions else dict(captions)


def _merged(
    files: Iterable[tuple[Path | None, Callable[[Mapping[str, Any]], dict[str, Any]]]],
) -> dict[str, dict[str, Any]]:
    """The values of each key from all files, each passed through the function beside it. Later files override."""
    merged: dict[str, dict[str, Any]] = {}
    for path, values_of in files:
        for key, values in read_mapping(path).items() if path else ():
            if not isinstance(values, dict):
                raise UserError(f"{path}: {key!r} is {values!r}: it must be a mapping of caption types")
            merged.setdefault(key, {}).update(values_of(values))
    return merged


def _captions_and_scores(shard: _SanaShard, sample: int) -> tuple[dict[str, str], dict[str, float]]:
    """The captions of a sample and their scores, by type."""
    key, extensions = shard.tar.keys[sample], shard.tar.extensions(sample)
    captions = {**_record_texts(shard.tar, sample, extensions), **_texts(shard.captions.get(key, {}))}
    return captions, _scores(shard.scores.get(key, {}))


def _kept_captions(shard: _SanaShard, sample: int, choice: CaptionChoice) -> dict[str, float]:
    """The captions that an epoch draws from, with their weights: the one that was drawn, then the heaviest others.

    Another caption that is empty or not UTF-8 is passed over.
    """
    captions, scores = _captions_and_scores(shard, sample)
    weights = caption_weights(captions, scores, choice)
    drawn = choose_caption(captions, scores, shard.tar.keys[sample], choice)
    others = sorted((kind for kind in weights if kind != drawn), key=lambda kind: -weights[kind])
    kept: dict[str, float] = {}
    for kind in (drawn, *others):
        try:
            text = clean_caption(captions[kind])
        except Reject:  # the caption that was drawn is clean, or `_read` has rejected the picture
            continue
        if text in kept or len(kept) < choice.kept:  # two types may have the same words
            kept[text] = kept.get(text, 0.0) + weights[kind]
    return kept


def _check_limits(captions: Mapping[str, str], scores: Mapping[str, float], choice: CaptionChoice) -> None:
    """Raise LeftOut if the sample's best caption or its prompt scores too low."""
    best = max((score for kind, score in scores.items() if kind in captions), default=-math.inf)
    if choice.least_score is not None and best < choice.least_score:
        raise LeftOut
    if choice.least_prompt_score is not None and scores.get(PROMPT, math.inf) < choice.least_prompt_score:
        raise LeftOut


def _read(shard: _SanaShard, sample: int, choice: CaptionChoice) -> tuple[bytes, str]:
    key, extensions = shard.tar.keys[sample], shard.tar.extensions(sample)
    captions, scores = _captions_and_scores(shard, sample)
    _check_limits(captions, scores, choice)
    caption = captions[choose_caption(captions, scores, key, choice)]
    picture = next((extension for extension in PICTURES if extension in extensions), None)
    if picture is None and "npy" in extensions:
        raise Reject("it holds latents (.npy) and no picture: latents of other autoencoders are not taken over")
    if picture is None:
        raise Reject(f"no picture among its members {extensions}")
    return shard.tar.read(sample, picture), clean_caption(caption)


def _record_texts(tar: TarShard, sample: int, extensions: list[str]) -> dict[str, str]:
    """The texts in a sample's json, the prompt among them. Raises Reject if the json lacks what the layout asks for."""
    if "json" not in extensions:
        raise Reject("it has no json")
    record = parse_json(tar.read(sample, "json"), "its json")
    if not isinstance(record, dict) or not isinstance(record.get(PROMPT), str):
        raise Reject("its json has no prompt")
    for name in ("height", "width"):
        if type(record.get(name)) not in (int, float) or not record[name] > 0:
            raise Reject(f"its json has no {name}")
    return {PROMPT: record[PROMPT], **_texts(record)}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The texts among `values` that are not blank."""
    return {name: value for name, value in values.items() if isinstance(value, str) and value.strip()}


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """The scores as numbers. Raises Reject if one is not a finite number."""
    try:
        scores = {kind: float(value) for kind, value in values.items()}
    except (TypeError, ValueError, OverflowError):
        scores = {"": math.nan}  # refused below
    if not all(map(math.isfinite, scores.values())):
        raise Reject(f"its CLIP scores {dict(values)} are not all numbers")
    return scores

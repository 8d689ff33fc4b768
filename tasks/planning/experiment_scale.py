"""The scale of an experiment: numbers of samples, captions, prompts and pictures, and which of them are assumed.

Rendered scenes are looked at. The user's own pictures are not opened for a plan, so their sizes are assumed. They are
counted where that is quick: in a folder by the names of its files, and in SANA's layout by its list of shards.
"""

from dataclasses import dataclass, replace

from tasks.computing.seeds import numpy_generator
from tasks.data.heldout_split import heldout_count
from tasks.data.picture_files import encode_png
from tasks.data.scenes import draw_task, render, sample_scene
from tasks.data.sources.picture_folder import count_pictures
from tasks.data.sources.sana_shard_list import META, read_shard_list
from tasks.evaluation.prompts.evaluation_prompts import Prompt, chosen_prompts
from tasks.evaluation.prompts.judge_prompts import UNSEEN_SHARE, prompts_of_objects
from tasks.evaluation.prompts.object_prompts import object_prompts
from tasks.params.experiment_params import Params
from tasks.params.picture_params import Data, Shard
from tasks.params.user_files import own_path
from tasks.system.errors import UserError

OWN_SAMPLES = 50_000_000
"""Picture-caption pairs of SANA-1.5's pre-training (section 3.1)."""

SFT_SAMPLES = 144_291
"""Pictures of the second set that SANA-1.5 is fine-tuned on (section 3.2)."""

PUBLISHED_PROMPTS = 553
"""Prompts of GenEval's own evaluation."""

SCENES, RENDERED = 1024, 64
"""Scenes whose captions are looked at, and how many of them are rendered for the sizes of their PNGs."""

PNG_BYTES_PER_PIXEL = 1.8  # as of photographs
CHARACTERS_PER_TOKEN = 4  # of English text


@dataclass(frozen=True)
class Captions:
    """Captions that represent all captions: their words, and their tokens in the text encoder, BOS included."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    longest: int  # tokens of the longest caption of a batch, to which the others are padded


@dataclass(frozen=True)
class Scale:
    """The sizes of an experiment that params.yaml does not state."""

    train_samples: int
    heldout_samples: int
    captions: Captions
    png_bytes: tuple[float, ...]  # of pictures that represent all
    evaluation_prompts: int
    judge_prompts: int
    unseen_prompts: int  # that the judge is tested on
    prompt_tokens: int  # of the longest prompt
    assumptions: tuple[str, ...]


def tokens_of(text: str) -> int:
    """Tokens of a scene's caption or a GenEval prompt: BOS, and one token for each word, since all are common words."""
    return 1 + len(text.split())


def prompts_to_plan(params: Params) -> list[Prompt]:
    """The evaluation's prompts. If their file is not there yet: as many as GenEval has, of the same kind."""
    path = params.geneval.prompts
    if path is None or own_path(path).is_file():
        return chosen_prompts(params)
    return object_prompts(params.compute.seed, "plan", PUBLISHED_PROMPTS, ())


def measure_scale(params: Params, samples: int | None = None, caption_tokens: int | None = None) -> Scale:
    """The scale of an experiment. `samples` and the mean `caption_tokens` describe the user's own pictures.

    Raises UserError if they are given for rendered scenes, or do not fit the params.
    """
    seed = params.compute.seed
    evaluated = prompts_to_plan(params)
    asked = prompts_of_objects(params, evaluated)
    judged, unseen = asked.training, asked.unseen
    prompt_tokens = max(tokens_of(prompt.text) for prompt in [*evaluated, *judged, *unseen])
    prompts = len(evaluated), len(judged), len(unseen), prompt_tokens
    if params.shard.source != "scenes":
        return _own_pictures(params, samples, caption_tokens, prompts)
    if samples is not None or caption_tokens is not None:
        raise UserError("--samples and --caption-tokens are for one's own pictures: shard.source is scenes")
    rng, tasks = numpy_generator(seed, "scenes", "train"), params.shard.scene_tasks
    scenes = [sample_scene(rng, draw_task(rng, tasks) if tasks else None) for _ in range(SCENES)]
    texts = tuple(scene.caption for scene in scenes)
    tokens = tuple(min(tokens_of(text), params.text_encoder.max_tokens) for text in texts)
    png = tuple(len(encode_png(render(scene, params.shard.image_size))) for scene in scenes[:RENDERED])
    looked_at = f"Captions are {SCENES} rendered scenes', pictures {RENDERED} of them."
    chosen = params.shard
    if params.scorer == "matching":
        prompts = _caption_prompts(params, chosen.train_samples, chosen.heldout_samples, max(tokens))
    return Scale(
        chosen.train_samples, chosen.heldout_samples, Captions(texts, tokens, max(tokens)), png, *prompts, (looked_at,)
    )


def measure_data_set(params: Params, name: str) -> Scale:
    """The scale of a set in `data.sets`. Its prompts are no matter, and limits of scores leave nothing out.

    A set of the user's own that cannot be counted is taken for one of `SFT_SAMPLES` pictures.
    """
    shard = params.shard_of(name)
    counted = shard.source == "scenes" or _is_counted(shard)
    return measure_scale(with_data_set(params, name), None if counted else SFT_SAMPLES)


def with_data_set(params: Params, name: str) -> Params:
    """The params with a set in `data.sets` in place of the pictures of `shard`, for what depends on pictures alone."""
    # The scorer matching suits all pictures, whereas a detector of scenes would refuse others.
    evaluation = replace(params.evaluation, scorer="matching")
    all_alike = Data({one: {} for one in params.data.sets})  # keys that differ from `shard` need not fit this set's
    return replace(params, shard=params.shard_of(name), data=all_alike, evaluation=evaluation)


def _own_pictures(
    params: Params, samples: int | None, caption_tokens: int | None, prompts: tuple[int, int, int, int]
) -> Scale:
    limit = params.text_encoder.max_tokens
    count, how_known = _count_own_pictures(params.shard, samples)
    tokens = limit // 2 if caption_tokens is None else caption_tokens
    if count < 2:
        where = f"{params.shard.path} holds {count} pictures" if samples is None else f"--samples is {count}"
        raise UserError(f"{where}: at least 2 are needed, one to hold out")
    if not 1 <= tokens <= limit:
        raise UserError(f"--caption-tokens is {tokens}: it must be from 1 to text_encoder.max_tokens = {limit}")
    heldout = heldout_count(count, params.shard.heldout_samples)
    if params.scorer == "matching":
        prompts = _caption_prompts(params, count - heldout, heldout, tokens)
    captions = Captions(("x" * (CHARACTERS_PER_TOKEN * tokens),), (tokens,), limit)
    png = (PNG_BYTES_PER_PIXEL * params.shard.image_size**2,)
    assumed = (
        f"Pictures: {count:,} ({how_known}). Assumed: captions of {tokens} tokens in the mean"
        + (" (half of text_encoder.max_tokens)" if caption_tokens is None else " (--caption-tokens)")
        + f", the longest of every batch {limit}",
        f"PNGs of {PNG_BYTES_PER_PIXEL} bytes a pixel, as of photographs.",
    )
    return Scale(count - heldout, heldout, captions, png, *prompts, ("; ".join(assumed),))


def _caption_prompts(params: Params, train: int, heldout: int, tokens: int) -> tuple[int, int, int, int]:
    """The numbers of prompts if they are captions: the evaluation's, the judge's, those it is tested on, and tokens."""
    judged = min(params.judge.prompts, max(train // 2, 1))
    return min(params.matching.captions, heldout), judged, max(judged // UNSEEN_SHARE, 1), tokens


def _is_counted(chosen: Shard) -> bool:
    """Whether the user's own pictures are counted quickly."""
    place = own_path(str(chosen.path))
    return (chosen.source == "folder" and place.is_dir()) or (chosen.source == "sana" and (place / META).is_file())


def _count_own_pictures(chosen: Shard, samples: int | None) -> tuple[int, str]:
    """The number of the user's own pictures, and how it is known. `samples` is the number that the user gave, if any.

    Shards without a list are not counted, since all their headers would have to be read. Raises UserError if the list
    of SANA's layout cannot be used.
    """
    if samples is not None:
        return samples, "--samples"
    assert chosen.path is not None  # params refuse these sources without a path
    place = own_path(chosen.path)
    if chosen.source == "folder" and place.is_dir():
        return count_pictures(place), f"counted in {chosen.path}"
    if chosen.source == "sana" and (place / META).is_file():
        return sum(entry["nsamples"] for entry in read_shard_list(place / META)), f"listed in {chosen.path}/{META}"
    why = (
        f"{chosen.path} is not counted; say how many with --samples" if place.exists() else f"{chosen.path} is missing"
    )
    return OWN_SAMPLES, f"SANA-1.5, section 3.1: {why}"

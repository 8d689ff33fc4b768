"""Stage `shard`: write pictures and captions as WebDataset shards, split into train and heldout, with an index.

params.yaml, section shard:
  source: scenes       rendered pictures of coloured shapes, train_samples and heldout_samples of them
  source: folder       the pictures in and below `path`, with captions in a .txt beside each or in metadata.jsonl
  source: webdataset   the shards at `path`: a picture with a prompt or caption in its json, or a txt
  source: sana         SANA's own layout at `path`: shards that wids-meta.json lists, with further captions beside them

Your own pictures are resized to cover a square of image_size pixels, and their centre is cropped. With aspect_buckets
they are fitted to the nearest of 40 sizes of about that area instead (tasks/data/aspect_buckets.py). A tenth of them is
held out, or 100 if that is more, but never more than half of them and never more than heldout_samples. Pictures that
cannot be used are named in results/rejects/shard.jsonl. If their share is above max_reject_share, the stage stops.

`python -m tasks.shard --data NAME` does the same for a set NAME of data.sets.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from tasks.data.aspect_buckets import aspect_buckets
from tasks.data.heldout_split import by_hash, heldout_count, usable
from tasks.data.picture_files import encode_png
from tasks.data.rejected_pictures import Rejects
from tasks.data.shards import SPLITS, Sample, describe, write_index, write_split
from tasks.data.sources.picture_candidate import Candidate
from tasks.data.sources.picture_folder import folder_candidates
from tasks.data.sources.rendered_scenes import scene_pictures
from tasks.data.sources.sana_shards import CaptionChoice, sana_candidates
from tasks.data.sources.webdataset_shards import webdataset_candidates
from tasks.params.picture_params import Shard as ShardParams
from tasks.params.user_files import own_path
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.progress import progress


def rejects_file(data_set: str | None = None) -> Path:
    """The file beside the results that names the rejected pictures of a data set."""
    return paths.RESULTS / "rejects" / ("shard.jsonl" if data_set is None else f"shard-{data_set}.jsonl")


def run(context: Context, data_set: str | None = None) -> Metrics:
    """Write the shards of the section `shard`, or of a set in `data.sets`; returns the number of samples by split."""
    params, seed = context.params.shard_of(data_set), context.params.compute.seed
    if params.source == "scenes":
        return write_scenes(context.out, params, seed, data_set)
    candidates = own_candidates(params, own_path(params.path), seed)
    return write_own_pictures(context.out, params, candidates, rejects_file(data_set))


def own_candidates(params: ShardParams, path: Path, seed: int) -> list[Candidate]:
    """The user's own pictures at `path`."""
    if params.source == "folder":
        return folder_candidates(path)
    if params.source == "webdataset":
        return webdataset_candidates(path)
    choice = CaptionChoice(
        params.caption_suffixes,
        params.caption_score_threshold,
        params.caption_temperature,
        seed,
        params.caption_proportions,
        params.captions_per_sample,
        params.min_caption_score,
        params.min_prompt_score,
    )
    return sana_candidates(path, choice)


def write_scenes(out: Path, params: ShardParams, seed: int, data_set: str | None = None) -> Metrics:
    """Render both splits, each from its own random stream. A further data set has streams of its own too."""
    counts = {"train": params.train_samples, "heldout": params.heldout_samples}
    splits = {}
    for split in SPLITS:
        stream = (split,) if data_set is None else (data_set, split)
        scenes = scene_pictures(seed, stream, counts[split], params.image_size, params.scene_tasks)
        samples = (_sample(number, picture, caption) for number, (picture, caption) in enumerate(scenes))
        metered = _metered(samples, f"shard {split}", counts[split])
        splits[split] = write_split(out, split, metered, params.samples_per_shard)
    write_index(out, splits)
    return {f"{split}_samples": counts[split] for split in SPLITS}


def write_own_pictures(
    out: Path, params: ShardParams, candidates: list[Candidate], rejects_path: Path | None = None
) -> Metrics:
    """Write the usable candidates; returns counts. Raises UserError if too many are rejected, or a split is empty."""
    rejects, listed = Rejects(len(candidates)), rejects_path or rejects_file()
    buckets = aspect_buckets(params.image_size) if params.aspect_buckets else ()
    pictures = usable(by_hash(candidates), params.image_size, params.max_pixels, rejects, buckets)
    samples = (
        _sample(number, picture, caption, params.aspect_buckets, source=candidate.where, **_several(candidate))
        for number, (candidate, picture, caption) in enumerate(pictures)
    )
    metered = _metered(samples, "shard", len(candidates))
    # One pass over the pictures: the held-out split takes the first, the training split the rest.
    heldout = islice(metered, heldout_count(len(candidates), params.heldout_samples))
    splits = {"heldout": write_split(out, "heldout", heldout, params.samples_per_shard)}
    splits["train"] = write_split(out, "train", metered, params.samples_per_shard)
    write_index(out, splits)
    for path in (listed, out / "rejects.jsonl"):  # the former stays if the check below stops the stage
        rejects.write(path)
    rejects.check(params.max_reject_share, listed)
    counts = {split: sum(entry.samples for entry in splits[split]) for split in SPLITS}
    if not all(counts.values()):
        usable_count = sum(counts.values())
        if usable_count > 1:  # many more were rejected than held out, which max_reject_share allows
            raise UserError(
                f"{params.path}: all {usable_count} usable pictures are held out: set shard.heldout_samples to "
                f"{usable_count // 2} or less"
            )
        raise UserError(f"{params.path} has {usable_count} usable pictures: at least 2 are needed, one to hold out")
    left_out = {"left_out": rejects.left_out} if rejects.left_out else {}
    return {**{f"{split}_samples": count for split, count in counts.items()}, "rejected": len(rejects.found)} | left_out


def _several(candidate: Candidate) -> dict[str, list[tuple[str, float]]]:
    """The entry of a sample's record that has all its captions in order; none if one is kept."""
    return {} if candidate.captions is None else {"captions": list(candidate.captions().items())}


def _sample(number: int, picture: np.ndarray, caption: str, sized: bool = False, **more: object) -> Sample:
    height, width, _ = picture.shape
    members = {"png": encode_png(picture), "json": describe(height, width, caption, **more)}
    return Sample(f"{number:09d}", members, (height, width) if sized else None)


def _metered(samples: Iterable[Sample], label: str, total: int) -> Iterator[Sample]:
    """The samples, with a progress bar."""
    with progress(label, total) as meter:
        for sample in samples:
            yield sample
            meter.advance()


if __name__ == "__main__":
    stage_command("shard", __doc__)

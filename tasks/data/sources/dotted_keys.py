"""Pictures that WebDataset's rule hides because their keys have dots.

WebDataset splits a member's name at its first dot. `v1.0.jpg` and `v1.1.jpg` are thus one sample `v1` with the
extensions `0.jpg` and `1.jpg`, and neither is a picture. Each such picture is counted as a reject of its own.
"""

from collections.abc import Sequence

from tasks.data.sources.picture_candidate import Candidate, rejected

CAPTIONS = ("txt", "json")


def hidden_pictures(key: str, shard: str, extensions: Sequence[str], pictures: Sequence[str]) -> list[Candidate]:
    """A reject for each picture whose own key has a dot, among the members of the sample `key`.

    With a plain picture in the sample, a further one counts if it has a caption of its own. Else it is taken for a
    companion of the plain one, such as a `thumb.jpg`.
    """
    plain = any(picture in extensions for picture in pictures)
    found = []
    for extension in extensions:
        stem, dot, suffix = extension.rpartition(".")
        if not dot or suffix not in pictures:
            continue
        if plain and not any(f"{stem}.{caption}" in extensions for caption in CAPTIONS):
            continue
        own = f"{key}.{extension}"
        reason = f"its key has a dot, and WebDataset reads it as a part of {key!r}: write keys without dots"
        found.append(rejected(own, f"{shard}:{own}", reason))
    return found

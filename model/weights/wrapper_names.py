"""Takes off what wrappers put into the names of tensors: torch.compile, DDP, FSDP, Lightning, and other trainers.

Some wrap the whole model. Its name then stands in front of every tensor's name: `module.x_embedder.proj.weight`. Others
wrap modules within it as well, and leave names that no network of ours has.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

IN_FRONT = ("module", "model", "diffusion_model", "transformer")
"""Names of a whole model inside its wrapper: DDP's, Lightning's, and those of other trainers and user interfaces."""
ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that torch.compile, FSDP and activation checkpointing give to what they wrap, whole models or single blocks."""


def without_wrappers(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without the names of wrappers, and those names in the order in which they were taken off.

    A name of `IN_FRONT` is taken off if all tensors have it. If two tensors had one name afterwards, nothing is taken
    off.
    """
    found = [name for name in ANYWHERE if any(name in key.split(".") for key in weights)]
    keys = {key: ".".join(part for part in key.split(".") if part not in ANYWHERE) for key in weights}
    while front := _in_front(keys.values()):
        found.append(front)
        keys = {key: name.removeprefix(f"{front}.") for key, name in keys.items()}
    if not found or len(set(keys.values())) < len(keys):
        return dict(weights), []
    return {keys[key]: tensor for key, tensor in weights.items()}, found


def _in_front(names: Iterable[str]) -> str | None:
    """The name of `IN_FRONT` with which all names begin, or None."""
    names = list(names)
    return next((front for front in IN_FRONT if names and all(name.startswith(f"{front}.") for name in names)), None)

"""Two sets of names for the network's tensors: the published code's, which are ours, and `SanaTransformer2DModel`'s.

diffusers stores queries, keys and values as tensors of their own, and the published code as one tensor.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

TOP_LEVEL = {
    "x_embedder.proj": "patch_embed.proj",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
    "t_block.1": "time_embed.linear",
    "attention_y_norm": "caption_norm",
    "final_layer.linear": "proj_out",
    "final_layer": "",  # its scale_shift_table stands alone
}
BLOCK = {
    "": "",  # the scale_shift_table
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "cross_attn.proj": "attn2.to_out.0",
    "mlp.inverted_conv.conv": "ff.conv_inverted",
    "mlp.depth_conv.conv": "ff.conv_depth",
    "mlp.point_conv.conv": "ff.conv_point",
}
SPLIT = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}
BLOCKS, THEIR_BLOCKS = "blocks", "transformer_blocks"
LEFT_OUT = ("pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias")
"""Tensors of published checkpoints that are no part of the network: zeros, the empty prompt, and an unused head."""


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether these tensor names are diffusers'."""
    return any(name.startswith((f"{THEIR_BLOCKS}.", "patch_embed.")) for name in names)


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under diffusers' names. Raises ValueError with the name of an unknown tensor."""
    theirs = {}
    for name, tensor in weights.items():
        prefix, module, leaf = _parts(name, BLOCKS)
        table = BLOCK if prefix else TOP_LEVEL
        start = prefix.replace(BLOCKS, THEIR_BLOCKS, 1)
        if prefix and module in SPLIT:
            targets = SPLIT[module]
            theirs |= {
                f"{start}{target}.{leaf}": part.contiguous()
                for target, part in zip(targets, tensor.chunk(len(targets)), strict=True)
            }
        elif module in table:
            theirs[start + _joined(table[module], leaf)] = tensor
        else:
            raise ValueError(f"{name} is no tensor of the network")
    return theirs


def from_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' tensors under our names. Names that are not diffusers' stay as they are.

    diffusers stores some tensors in parts. Where one part is missing, or has another width or kind, the parts stay as
    they are, so that whoever checks the names finds them.
    """
    ours, parts = {}, {}
    for name, tensor in weights.items():
        prefix, module, leaf = _parts(name, THEIR_BLOCKS)
        start = prefix.replace(THEIR_BLOCKS, BLOCKS, 1)
        if prefix and module in _PART_OF:
            whole, number = _PART_OF[module]
            parts.setdefault(f"{start}{whole}.{leaf}", {})[number] = (name, tensor)
        elif module in (table := _BLOCK_BACK if prefix else _TOP_LEVEL_BACK):
            ours[start + _joined(table[module], leaf)] = tensor
        else:
            ours[name] = tensor
    for name, found in parts.items():
        kinds = {(tensor.ndim, tensor.shape[1:], tensor.dtype) for _, tensor in found.values()}
        joined = len(kinds) == 1 and next(iter(kinds))[0] > 0
        if joined and len(found) == len(SPLIT[_parts(name, BLOCKS)[1]]):
            ours[name] = torch.cat([found[number][1] for number in sorted(found)])
        else:
            ours |= dict(found.values())
    return ours


def _parts(name: str, blocks: str) -> tuple[str, str, str]:
    """`blocks.3.attn.proj.weight` as (`blocks.3.`, `attn.proj`, `weight`); the first is empty outside the blocks."""
    head, *rest = name.split(".")
    prefix = f"{head}.{rest[0]}." if head == blocks and len(rest) > 1 and rest[0].isdigit() else ""
    module, _, leaf = name[len(prefix) :].rpartition(".")
    return prefix, module, leaf


def _joined(module: str, leaf: str) -> str:
    """The full name of a tensor; the tables have an empty module for tensors that stand alone."""
    return f"{module}.{leaf}" if module else leaf


_TOP_LEVEL_BACK = {theirs: ours for ours, theirs in TOP_LEVEL.items()}
_BLOCK_BACK = {theirs: ours for ours, theirs in BLOCK.items()}
_PART_OF = {part: (whole, number) for whole, parts in SPLIT.items() for number, part in enumerate(parts)}

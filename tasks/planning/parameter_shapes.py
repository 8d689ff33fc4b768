"""The network's parameters by shape, computed from its config alone. `model.network` is the network itself.

Shapes: D hidden size, I inner channels of the Mix-FFN, C latent channels, E caption channels.
"""

from collections import Counter
from math import prod

from model.layers import TIME_FREQUENCIES
from model.network import NetworkConfig
from model.network_flops import inner_channels

Shape = tuple[int, ...]


def block_shapes(config: NetworkConfig) -> Counter[Shape]:
    """How many parameters of each shape one block has."""
    hidden, inner = config.hidden_size, inner_channels(config)
    shapes = Counter(
        [
            (6, hidden),  # modulation
            (3 * hidden, hidden),  # self-attention: queries, keys and values in one
            *_linear(hidden, hidden),  # its output
            *_linear(hidden, hidden),  # cross-attention: queries
            *_linear(2 * hidden, hidden),  # its keys and values
            *_linear(hidden, hidden),  # its output
            (2 * inner, hidden, 1, 1),
            (2 * inner,),
            (2 * inner, 1, 3, 3),
            (2 * inner,),
            (hidden, inner, 1, 1),
        ]
    )
    if config.qk_norm:
        shapes[(hidden,)] += 4
    return shapes


def outer_shapes(config: NetworkConfig) -> Counter[Shape]:
    """How many parameters of each shape lie outside the blocks: in embedders, shared modulation and final layer."""
    hidden, patch, channels = config.hidden_size, config.patch_size, config.in_channels
    return Counter(
        [
            (hidden, channels, patch, patch),
            (hidden,),
            *_linear(hidden, TIME_FREQUENCIES),
            *_linear(hidden, hidden),
            *_linear(6 * hidden, hidden),
            *_linear(hidden, config.caption_channels),
            *_linear(hidden, hidden),
            (hidden,),  # caption norm
            (2, hidden),
            *_linear(patch * patch * channels, hidden),
        ]
    )


def parameter_shapes(config: NetworkConfig) -> Counter[Shape]:
    """How many parameters of each shape the network has."""
    shapes = outer_shapes(config)
    for shape, count in block_shapes(config).items():
        shapes[shape] += config.depth * count
    return shapes


def parameters(config: NetworkConfig) -> int:
    """The number of trained values of the network."""
    return sum(count * prod(shape) for shape, count in parameter_shapes(config).items())


def _linear(outputs: int, inputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]

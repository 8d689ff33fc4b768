"""The configuration of the network that an experiment's params ask for."""

from model.network import NetworkConfig
from tasks.params.network_params import Network


def network_config(shape: Network, depth: int, in_channels: int, caption_channels: int) -> NetworkConfig:
    """The network of params.yaml at a depth, between encoders of these channels."""
    return NetworkConfig(
        in_channels=in_channels,
        hidden_size=shape.hidden_size,
        depth=depth,
        linear_head_dim=shape.linear_head_dim,
        cross_heads=shape.cross_heads,
        mlp_ratio=shape.mlp_ratio,
        patch_size=shape.patch_size,
        caption_channels=caption_channels,
        qk_norm=shape.qk_norm,
        numerics=shape.numerics,
    )

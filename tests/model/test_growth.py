"""Claims about depth growth."""

import pytest
import torch

from model.growth import STRATEGIES, drop_count, function_distance, grow, identity_block
from model.network import Sana
from tests.helpers.small_networks import small_batch, small_network, velocity

OUTSIDE = ("x_embedder", "t_embedder", "t_block", "y_embedder", "attention_y_norm", "final_layer")


def grown(network: Sana, depth: int, strategy: str, drop: int = 0, seed: int = 7) -> Sana:
    return grow(network, depth, strategy, drop, 0.02, torch.Generator().manual_seed(seed))


def output(network: Sana) -> torch.Tensor:
    latents, _, text, mask = small_batch()
    with torch.no_grad():
        return velocity(network, latents, network.encode_text(text, mask))


def same_block(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def source_of(network: Sana, block: torch.nn.Module) -> int:
    """Number of the only block of `network` that `block` equals."""
    (found,) = [i for i, candidate in enumerate(network.blocks) if same_block(candidate, block)]
    return found


def test_partial_preservation_without_a_drop_computes_the_small_networks_function() -> None:
    small = small_network(3)
    assert torch.equal(output(grown(small, 8, "partial_preservation")), output(small))


def test_partial_preservation_computes_the_function_of_the_kept_blocks() -> None:
    small, cut = small_network(4), small_network(4)
    del cut.blocks[2:]
    assert torch.equal(output(grown(small, 7, "partial_preservation", drop=2)), output(cut))
    assert not torch.equal(output(cut), output(small))


def test_new_blocks_learn_although_they_start_as_the_identity() -> None:
    network = grown(small_network(2), 4, "partial_preservation")
    latents, _, text, mask = small_batch()
    velocity(network, latents, network.encode_text(text, mask)).square().sum().backward()
    for block in network.blocks[2:]:
        for projection in (block.attn.proj, block.cross_attn.proj, block.mlp.point_conv.conv):
            assert projection.weight.grad.abs().max() > 0


def test_new_blocks_are_drawn_as_documented() -> None:
    config = small_network(1).config
    block = identity_block(config, 0.05, torch.Generator().manual_seed(0))
    zero = {"attn.proj.weight", "cross_attn.proj.weight", "mlp.point_conv.conv.weight"}
    for name, parameter in block.named_parameters():
        if name in zero or name.endswith("bias"):
            assert parameter.count_nonzero() == 0, name
        elif "_norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.2 if "depth_conv" in name else 0.05
            assert parameter.std().item() == pytest.approx(std, rel=0.2), name
            assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5, name


@pytest.mark.parametrize("drop", [0, 1])
def test_cyclic_growth_repeats_the_kept_blocks_in_turn(drop: int) -> None:
    small = small_network(3)
    sources = [source_of(small, block) for block in grown(small, 7, "cyclic", drop).blocks]
    assert sources == ([0, 1, 2, 0, 1, 2, 0] if drop == 0 else [0, 1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize(
    ("depth", "drop", "expected"),
    [(9, 0, [0, 0, 0, 1, 1, 1, 2, 2, 2]), (7, 0, [0, 0, 0, 1, 1, 2, 2]), (5, 1, [0, 0, 0, 1, 1]), (3, 0, [0, 1, 2])],
)
def test_block_replication_repeats_each_kept_block_in_place(depth: int, drop: int, expected: list[int]) -> None:
    small = small_network(3)
    assert [source_of(small, block) for block in grown(small, depth, "block_replication", drop).blocks] == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everything_outside_the_blocks_is_copied(strategy: str) -> None:
    small = small_network(2)
    after = grown(small, 5, strategy, drop=1).state_dict()
    outside = {name: tensor for name, tensor in small.state_dict().items() if not name.startswith("blocks.")}
    assert {name.split(".")[0] for name in outside} == set(OUTSIDE)
    assert all(torch.equal(after[name], tensor) for name, tensor in outside.items())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_grown_network_shares_no_memory_with_its_source_or_between_its_blocks(strategy: str) -> None:
    small = small_network(2)
    deep = grown(small, 6, strategy)
    pointers = [parameter.data_ptr() for network in (small, deep) for parameter in network.parameters()]
    assert len(pointers) == len(set(pointers))
    assert (small.config.depth, len(small.blocks)) == (2, 2)
    assert (deep.config.depth, len(deep.blocks)) == (6, 6)


def test_growth_depends_on_its_generator_alone() -> None:
    small = small_network(2)
    torch.manual_seed(1)
    first = grown(small, 4, "partial_preservation")
    torch.manual_seed(2)
    second = grown(small, 4, "partial_preservation")
    other = grown(small, 4, "partial_preservation", seed=8)
    assert all(same_block(a, b) for a, b in zip(first.blocks, second.blocks, strict=True))
    assert not same_block(first.blocks[3], other.blocks[3])
    assert not same_block(first.blocks[2], first.blocks[3])


@pytest.mark.parametrize(
    ("depth", "share", "expected"), [(20, 0.1, 2), (4, 0.1, 0), (5, 0.1, 1), (4, 0.25, 1), (4, 0.95, 3), (20, 0.0, 0)]
)
def test_the_dropped_share_is_rounded_half_up_and_leaves_a_block(depth: int, share: float, expected: int) -> None:
    assert drop_count(depth, share) == expected


@pytest.mark.parametrize(("depth", "drop"), [(1, 0), (4, 2), (4, -1)])
def test_impossible_growth_is_refused_in_one_line(depth: int, drop: int) -> None:
    with pytest.raises(ValueError, match=r"^cannot (grow|drop) [^\n]+: [^\n]+$"):
        grown(small_network(2), depth, "partial_preservation", drop)


def test_function_distance_is_the_relative_euclidean_distance() -> None:
    reference, other = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 2.0], [1.5, 4.0]])
    assert function_distance(other, reference) == pytest.approx(2.5 / 5)
    assert function_distance(reference, reference) == 0

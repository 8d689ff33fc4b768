"""Optimizers by name: what each name builds, resuming bit for bit, and the memory of their state."""

import copy
import io
import logging

import pytest
import torch
from torch import nn

from kernels.came8bit import Came, Came8bit
from kernels.optimizers import OPTIMIZERS, build_optimizer, state_bytes_per_parameter, takes_found_inf

NAMES = ("came8bit", "came", "adamw8bit", "adamw")


def class_of(name: str) -> type[torch.optim.Optimizer]:
    """What the name stands for; a test that needs bitsandbytes is skipped where that is not installed."""
    if name == "adamw8bit":
        return pytest.importorskip("bitsandbytes").optim.AdamW8bit
    return {"came8bit": Came8bit, "came": Came, "adamw": torch.optim.AdamW}[name]


def make_network() -> nn.Module:
    """A network with matrices above and below the 8-bit optimizers' limits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 640), nn.SiLU(), nn.Linear(640, 64), nn.SiLU(), nn.Linear(64, 8))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Regression on inputs that depend on the step alone."""
    for step in steps:
        inputs = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (network(inputs) - inputs[:, :8].sin()).square().mean().backward()
        optimizer.step()


def test_the_names_are_these() -> None:
    assert OPTIMIZERS.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_its_optimizer_with_the_given_rate_and_decay(name: str) -> None:
    expected = class_of(name)
    (group,) = build_optimizer(name, iter(make_network().parameters()), 3e-4, 0.02).param_groups
    assert type(build_optimizer(name, make_network().parameters(), 3e-4, 0.02)) is expected
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (3e-4, 0.02, 6)


def test_came_uses_the_betas_and_epsilons_of_sana() -> None:
    for name in ("came8bit", "came"):
        (group,) = build_optimizer(name, make_network().parameters(), 1e-4, 0.0).param_groups
        assert group["betas"] == (0.9, 0.999, 0.9999)
        assert group["eps"] == (1e-30, 1e-16)


@pytest.mark.parametrize(
    ("kernels", "device", "on_shards"),
    [("auto", "cuda", True), ("reference", "cuda", False), ("auto", "cpu", False)],
)
def test_sharded_parameters_skip_by_the_flag_where_tritons_kernels_step(
    kernels: str, device: str, on_shards: bool
) -> None:
    came = Came8bit(make_network().parameters(), lr=0.1, kernels=kernels)
    assert takes_found_inf(came, torch.device(device), sharded=False)
    assert takes_found_inf(came, torch.device(device), sharded=True) is on_shards


def test_torchs_fused_optimizer_is_not_given_the_flag_on_shards() -> None:
    adamw = build_optimizer("adamw", make_network().parameters(), 0.1, 0.0)
    assert takes_found_inf(adamw, torch.device("cuda"), sharded=False)
    assert not takes_found_inf(adamw, torch.device("cuda"), sharded=True)


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"'came8bits'.*did you mean 'came8bit'"):
        build_optimizer("came8bits", make_network().parameters(), 1e-4, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(name: str) -> None:
    class_of(name)
    whole = make_network()
    train(whole, build_optimizer(name, whole.parameters(), 1e-3, 0.01), range(8))

    halved = make_network()
    first = build_optimizer(name, halved.parameters(), 1e-3, 0.01)
    train(halved, first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)

    resumed_network = copy.deepcopy(halved)
    resumed = build_optimizer(name, resumed_network.parameters(), 1e-3, 0.01)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed_network, resumed, range(4, 8))
    for one, two in zip(whole.parameters(), resumed_network.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("came8bit", 1.0, 2.0), ("came", 4.0, 4.5), ("adamw8bit", 2.0, 2.5), ("adamw", 8.0, 8.1)]
)
def test_state_bytes_per_parameter_counts_every_kind_of_state(name: str, low: float, high: float) -> None:
    class_of(name)
    network = nn.Linear(256, 256)
    optimizer = build_optimizer(name, network.parameters(), 1e-3, 0.0)
    network(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    assert low < state_bytes_per_parameter(optimizer) < high


def test_state_bytes_per_parameter_is_exact_for_came() -> None:
    network = nn.Linear(6, 4)
    optimizer = build_optimizer("came", network.parameters(), 1e-3, 0.0)
    network(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    # the matrix: momentum and two factored means; the bias: momentum and mean of squares
    numbers = 4 * 6 + 2 * (4 + 6) + 2 * 4
    assert state_bytes_per_parameter(optimizer) == 4 * numbers / (4 * 6 + 4)


def test_bitsandbytes_does_not_complain_of_our_packages_name_and_may_of_all_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("bitsandbytes")
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no get_kernel in kernels")
    logger.warning("another trouble")
    assert caplog.messages == ["another trouble"]

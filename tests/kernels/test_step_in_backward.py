"""CAME's step within the backward pass: the ordinary step's bits, one large gradient at a time, and what it refuses."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from kernels.came8bit import Came, Came8bit
from kernels.came8bit.step_in_backward import SMALL, NonFiniteGradient, StepInBackward
from tests.kernels.processes import run_processes


class Network(nn.Module):
    """Large and small layers, one of which is used twice and one of which is frozen."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 400)
        self.large = nn.ModuleList(nn.Linear(400, 400) for _ in range(4))
        self.last = nn.Linear(400, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in [*self.large, self.large[0]]:
            x = nn.functional.silu(layer(x))
        return self.frozen(self.last(x))


def loss_of(network: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A loss that depends on the step alone."""
    inputs = torch.randn(16, 32, generator=torch.Generator().manual_seed(step)).to(dtype)
    return (network(inputs) - 1).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", [Came, Came8bit])
@pytest.mark.parametrize("corrected", [False, True], ids=["as published", "bias corrected"])
@pytest.mark.parametrize("rounding", ["stochastic_rounding", "correction"])
def test_parameters_and_state_have_the_bits_of_the_ordinary_step(
    optimizer: type[Came], dtype: torch.dtype, corrected: bool, rounding: str
) -> None:
    ordinary, network = Network(dtype), Network(dtype)
    options = {"lr": 1e-3, "weight_decay": 0.01, rounding: True, "bias_correction": corrected}
    peer, built = optimizer(ordinary.parameters(), **options), optimizer(network.parameters(), **options)
    stepper = StepInBackward(built, network)
    for step in range(4):
        for group in (*peer.param_groups, *built.param_groups):
            group["lr"] = 1e-3 / (step + 1)  # a schedule
        loss_of(ordinary, step, dtype).backward()
        peer.step()
        peer.zero_grad()
        loss_of(network, step, dtype).backward()
        stepper.finish()
    for one, two in zip(ordinary.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, two)
        states = peer.state[one], built.state[two]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_loaded_state_goes_on_with_its_own_rate_and_count_of_steps() -> None:
    ends = []
    for loads in (False, True):
        network = Network(torch.bfloat16)
        optimizer = Came8bit(network.parameters(), lr=1e-3, stochastic_rounding=True)
        stepper = StepInBackward(optimizer, network)
        for step in range(4):
            if loads and step == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
            loss_of(network, step, torch.bfloat16).backward()
            stepper.finish()
        assert optimizer.param_groups[0]["steps"] == 4
        ends.append([parameter.detach().clone() for parameter in network.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


def test_no_more_than_one_large_gradient_is_alive_at_once() -> None:
    network = Network()
    most = []

    def count(_: Tensor) -> None:
        large = [parameter for parameter in network.parameters() if parameter.numel() > SMALL]
        most.append(sum(parameter.grad is not None for parameter in large))

    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(count)
    stepper = StepInBackward(Came8bit(network.parameters(), lr=1e-3), network)
    loss_of(network, 0).backward()
    assert max(most) == 1
    stepper.finish()
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["large.2.weight", "last.bias"])
def test_a_gradient_that_is_not_finite_is_named_and_a_checkpoint_goes_on(bad: float, name: str) -> None:
    network = Network()
    optimizer = Came8bit(network.parameters(), lr=1e-3)
    stepper = StepInBackward(optimizer, network)
    loss_of(network, 0).backward()
    stepper.finish()
    saved = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.utils._pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, optimizer.state_dict()
    )
    hook = network.get_parameter(name).register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), bad))
    loss_of(network, 1).backward()
    with pytest.raises(NonFiniteGradient, match=rf"the gradient of {name} is not finite") as caught:
        stepper.finish()
    assert caught.value.parameter == name
    hook.remove()
    ends = []
    for _ in range(2):
        network.load_state_dict(saved)
        optimizer.load_state_dict(state)
        loss_of(network, 1).backward()
        stepper.finish()
        ends.append([parameter.detach().clone() for parameter in network.parameters()])
    assert all(torch.equal(one, two) and one.isfinite().all() for one, two in zip(*ends, strict=True))


def test_clipping_and_accumulation_are_refused_by_name_in_one_line() -> None:
    network = Network()
    optimizer = Came8bit(network.parameters(), lr=1e-3)
    for options, name in (
        ({"clip_norm": 0.1}, "clipping by the global norm"),
        ({"grad_accumulation": 2}, "accumulation"),
    ):
        with pytest.raises(ValueError, match=name) as caught:
            StepInBackward(optimizer, network, **options)
        assert "\n" not in str(caught.value)


def test_parameters_that_the_network_has_not_are_refused() -> None:
    network = Network()
    optimizer = Came8bit([*network.parameters(), nn.Parameter(torch.ones(3))], lr=1e-3)
    with pytest.raises(ValueError, match="parameters that the network has not"):
        StepInBackward(optimizer, network)


def test_a_second_backward_before_finish_is_refused() -> None:
    network = Network()
    StepInBackward(Came8bit(network.parameters(), lr=1e-3), network)
    loss_of(network, 0).backward()
    with pytest.raises(RuntimeError, match="no accumulation in backward"):
        loss_of(network, 1).backward()


def test_after_removal_gradients_stay() -> None:
    network = Network()
    StepInBackward(Came8bit(network.parameters(), lr=1e-3), network).remove()
    loss_of(network, 0).backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


def check_wrapped(_: Path) -> None:
    """Networks under DDP and FSDP2, of one process."""
    replicated, sharded = DistributedDataParallel(Network()), Network()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    for network, name in ((replicated, "DDP"), (sharded, "FSDP")):
        with pytest.raises(ValueError, match=name):
            StepInBackward(Came8bit(network.parameters(), lr=1e-3), network)


def test_ddp_and_fsdp_are_refused_by_name(tmp_path: Path) -> None:
    run_processes(1, tmp_path, check_wrapped)

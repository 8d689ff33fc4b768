"""CAME and CAME-8bit: the algorithm in double precision, came-pytorch, resuming, memory and convergence."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.came8bit import Came, Came8bit
from kernels.optimizers import state_bytes_per_parameter

SHAPES = [(24, 40), (24, 40), (160, 128), (160, 128), (40,), (40,), (6, 1, 3, 3), (160, 128, 1, 1), (2, 3, 4)]


def make_parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Parameters that depend on their place in the list only."""
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Gradients of step `step`, of scales that differ by rows and by steps, so that clipping happens at some."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        rows = torch.rand((parameter.shape[0],) + (1,) * (parameter.dim() - 1), generator=generator)
        parameter.grad = (noise * rows * (10.0 if step % 4 == 3 else 0.01)).to(parameter.dtype)


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    """Step once for each of `steps`."""
    for step in steps:
        set_gradients(parameters, step)
        optimizer.step()


def saved_and_loaded(optimizer: torch.optim.Optimizer) -> dict:
    """The optimizer's state after a trip through a file that unpickles no objects."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same_state(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> bool:
    """Whether two optimizers' states are the same names, dtypes and bits."""
    one, two = first.state_dict()["state"], second.state_dict()["state"]
    return one.keys() == two.keys() and all(
        one[key].keys() == two[key].keys()
        and all(one[key][name].dtype == two[key][name].dtype for name in one[key])
        and all(torch.equal(one[key][name], two[key][name]) for name in one[key])
        for key in one
    )


class PlainCame:
    """Algorithm 2 of the CAME paper for one parameter, entry by entry in double precision.

    With `corrected` each running mean is divided by 1 - beta^n where it is read, but for the momentum in the surprise.
    """

    def __init__(
        self, parameter: Tensor, lr: float, weight_decay: float, betas: tuple[float, ...], corrected: bool = False
    ) -> None:
        self.corrected, self.n = corrected, 0
        self.p, self.lr, self.weight_decay, self.betas = parameter.detach().double(), lr, weight_decay, betas
        self.matrix = parameter.dim() == 2 or (parameter.dim() == 4 and parameter.shape[2:] == (1, 1))
        self.m = torch.zeros_like(self.p)
        self.squares: dict[str, Tensor | float] = {"R": 0.0, "C": 0.0, "S": 0.0, "D": 0.0, "V": 0.0}

    def ema(self, name: str, value: Tensor, beta: float) -> Tensor:
        self.squares[name] = beta * self.squares[name] + (1 - beta) * value
        return self.squares[name] / self.share(beta)

    def share(self, beta: float) -> float:
        return 1 - beta**self.n if self.corrected else 1.0

    def estimate(self, names: str, values: Tensor, beta: float) -> Tensor:
        rows, columns = values.shape[:2]
        flat = values.reshape(rows, columns)
        row, column = self.ema(names[0], flat.mean(1), beta), self.ema(names[1], flat.mean(0), beta)
        return (torch.outer(row, column) / row.mean()).reshape(values.shape)

    def step(self, gradient: Tensor) -> None:
        g = gradient.double()
        self.n += 1
        powers = g**2 + 1e-30
        u = (
            g
            / (
                self.estimate("RC", powers, self.betas[1]) if self.matrix else self.ema("V", powers, self.betas[1])
            ).sqrt()
        )
        u = u / max(1.0, math.sqrt((u**2).mean()))
        self.m = self.betas[0] * self.m + (1 - self.betas[0]) * u
        step = self.m / self.share(self.betas[0])
        if self.matrix:
            step = step / self.estimate("SD", (u - self.m) ** 2 + 1e-16, self.betas[2]).sqrt()
        self.p = self.p - self.lr * (self.weight_decay * self.p + step)


@pytest.mark.parametrize("corrected", [False, True], ids=["as published", "bias corrected"])
@pytest.mark.parametrize("betas", [(0.9, 0.999, 0.9999), (0.5, 0.8, 0.7)])
@pytest.mark.parametrize("shape", sorted(set(SHAPES)))
def test_came_is_the_papers_algorithm_in_double_precision(
    shape: tuple[int, ...], betas: tuple[float, ...], corrected: bool
) -> None:
    (parameter,) = make_parameters([shape])
    plain = PlainCame(parameter, 0.01, 0.1, betas, corrected)
    optimizer = Came([parameter], lr=0.01, weight_decay=0.1, betas=betas, bias_correction=corrected)
    for step in range(12):
        set_gradients([parameter], step)
        plain.step(parameter.grad)
        optimizer.step()
        torch.testing.assert_close(parameter.detach().double(), plain.p, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("optimizer", [Came, Came8bit])
@pytest.mark.parametrize("shape", [(160, 128), (40,)])
def test_the_first_steps_have_the_size_of_the_rate_only_with_bias_correction(
    optimizer: type[Came], shape: tuple[int, ...]
) -> None:
    sizes = {}
    for corrected in (False, True):
        (parameter,) = make_parameters([shape])
        built = optimizer([parameter], lr=1e-3, bias_correction=corrected)
        before = parameter.detach().clone()
        set_gradients([parameter], 0)
        built.step()
        sizes[corrected] = (parameter.detach() - before).square().mean().sqrt().item() / 1e-3
    # m = u / 10 and (u - m)^2 = .81 u^2; a vector has no instability and steps by m
    matrix = len(shape) == 2
    assert sizes[False] == pytest.approx(0.1 / (0.9 * math.sqrt(1e-4)) if matrix else 0.1, rel=0.1)
    assert sizes[True] == pytest.approx(1 / 0.9 if matrix else 1.0, rel=0.1)


def test_a_resumed_optimizer_corrects_for_all_steps_made() -> None:
    whole, halved = make_parameters(SHAPES), make_parameters(SHAPES)
    train(Came8bit(whole, lr=0.01, bias_correction=True), whole, range(6))
    first = Came8bit(halved, lr=0.01, bias_correction=True)
    train(first, halved, range(3))
    second = Came8bit(halved, lr=0.01, bias_correction=True)
    second.load_state_dict(saved_and_loaded(first))
    train(second, halved, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, halved, strict=True))


def test_came_equals_came_pytorch_on_matrices_and_vectors() -> None:
    came_pytorch = pytest.importorskip("came_pytorch")
    shapes = [(24, 40), (160, 128), (40,)]
    ours, theirs = make_parameters(shapes), make_parameters(shapes)
    first = Came(ours, lr=1e-3, weight_decay=0.01)
    second = came_pytorch.CAME(theirs, lr=1e-3, weight_decay=0.01)
    for step in range(100):
        train(first, ours, range(step, step + 1))
        train(second, theirs, range(step, step + 1))
    for one, two in zip(ours, theirs, strict=True):
        assert (one - two).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("optimizer", [Came, Came8bit])
def test_a_1x1_convolution_is_updated_as_the_matrix_bit_for_bit(optimizer: type[Came]) -> None:
    (matrix,) = make_parameters([(160, 128)])
    convolution = nn.Parameter(matrix.detach().clone()[:, :, None, None])
    train(optimizer([matrix], lr=0.01), [matrix], range(5))
    first = optimizer([convolution], lr=0.01)
    for step in range(5):
        set_gradients([matrix], step)
        convolution.grad = matrix.grad.clone()[:, :, None, None]
        first.step()
    assert torch.equal(convolution[:, :, 0, 0], matrix)


@pytest.mark.parametrize("optimizer", [Came, Came8bit])
def test_parameters_updated_together_have_the_bits_they_have_alone(optimizer: type[Came]) -> None:
    together, alone = make_parameters(SHAPES), make_parameters(SHAPES)
    joint = optimizer(together, lr=0.01, weight_decay=0.1)
    single = [optimizer([parameter], lr=0.01, weight_decay=0.1) for parameter in alone]
    for step in range(5):
        set_gradients(together, step)
        joint.step()
        set_gradients(alone, step)
        for one in single:
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_came8bit_differs_from_came_only_where_the_momentum_is_in_8_bits() -> None:
    exact, coarse = make_parameters(SHAPES), make_parameters(SHAPES)
    train(Came(exact, lr=1e-3), exact, range(10))
    optimizer = Came8bit(coarse, lr=1e-3)
    train(optimizer, coarse, range(10))
    for one, two, start in zip(exact, coarse, make_parameters(SHAPES), strict=True):
        large = one.numel() > 16_384
        assert ("momentum_codes" in optimizer.state[two]) == large
        assert torch.equal(one, two) != large
        # the path differs by little of its length: 1/255 of a block's span, again at each of ten steps
        assert (one - two).norm() <= 0.03 * (one - start).norm()


@pytest.mark.parametrize(("rows", "quantised"), [(128, False), (129, True)])
def test_only_matrices_of_more_than_16384_entries_are_kept_in_8_bits(rows: int, quantised: bool) -> None:
    parameters = make_parameters([(rows, 128), (rows, 128, 1, 1), (rows * 128,), (rows, 128, 3, 3)])
    optimizer = Came8bit(parameters, lr=1e-3)
    train(optimizer, parameters, range(1))
    found = ["momentum_codes" in optimizer.state[parameter] for parameter in parameters]
    assert found == [quantised, quantised, False, False]


def test_came8bit_needs_at_most_1_1_bytes_of_state_for_a_parameter_of_large_layers() -> None:
    sizes = {}
    for optimizer in (Came, Came8bit):
        parameters = make_parameters([(640, 512), (512, 640, 1, 1), (512,)])
        built = optimizer(parameters, lr=1e-3)
        train(built, parameters, range(1))
        sizes[optimizer] = state_bytes_per_parameter(built)
    assert sizes[Came8bit] <= 1.1
    assert 4.0 < sizes[Came] < 4.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", [Came, Came8bit])
def test_a_resumed_optimizer_equals_an_uninterrupted_one_bit_for_bit(optimizer: type[Came], dtype: torch.dtype) -> None:
    straight, halved = make_parameters(SHAPES, dtype), make_parameters(SHAPES, dtype)
    whole = optimizer(straight, lr=0.01)
    train(whole, straight, range(8))
    first = optimizer(halved, lr=0.01)
    train(first, halved, range(4))
    resumed_parameters = copy.deepcopy(halved)
    resumed = optimizer(resumed_parameters, lr=0.5)
    resumed.load_state_dict(saved_and_loaded(first))
    assert same_state(resumed, first)
    train(resumed, resumed_parameters, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed_parameters, strict=True))
    assert same_state(resumed, whole)


def test_loaded_codes_stay_uint8_and_statistics_float32_beside_bfloat16_parameters() -> None:
    parameters = make_parameters([(160, 128)], torch.bfloat16)
    optimizer = Came8bit(parameters, lr=0.01)
    train(optimizer, parameters, range(2))
    optimizer.load_state_dict(saved_and_loaded(optimizer))
    dtypes = {name: tensor.dtype for name, tensor in optimizer.state[parameters[0]].items()}
    assert dtypes.pop("momentum_codes") == torch.uint8
    assert set(dtypes.values()) == {torch.float32}


def test_stepping_after_a_load_leaves_the_loaded_state_alone() -> None:
    parameters = make_parameters(SHAPES)
    optimizer = Came8bit(parameters, lr=0.01)
    train(optimizer, parameters, range(2))
    saved = saved_and_loaded(optimizer)
    kept = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    train(optimizer, parameters, range(2, 4))
    for key, state in kept["state"].items():
        assert all(torch.equal(tensor, saved["state"][key][name]) for name, tensor in state.items())


def test_state_of_another_optimizer_or_shape_is_refused_in_one_line() -> None:
    parameters = make_parameters([(160, 128)])
    came = Came(parameters, lr=0.01)
    train(came, parameters, range(1))
    for other in (Came8bit(make_parameters([(160, 128)]), lr=0.01), Came(make_parameters([(128, 160)]), lr=0.01)):
        with pytest.raises(ValueError, match="optimizer state of parameter 0 is") as caught:
            other.load_state_dict(came.state_dict())
        assert "\n" not in str(caught.value)


def test_a_refused_load_leaves_all_as_it_was() -> None:
    parameters = make_parameters([(160, 128), (40,)])
    optimizer, other = Came8bit(parameters, lr=0.01), Came8bit(make_parameters([(160, 128), (41,)]), lr=0.5)
    train(optimizer, parameters, range(2))
    train(other, other.param_groups[0]["params"], range(1))
    before = saved_and_loaded(optimizer)
    with pytest.raises(ValueError, match="optimizer state of parameter 1 is"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.01
    untouched = Came8bit(make_parameters([(160, 128), (40,)]), lr=0.01)
    untouched.load_state_dict(before)
    assert same_state(optimizer, untouched)


def test_loaded_state_of_other_strides_moves_on() -> None:
    straight, loaded = make_parameters([(6, 5, 3, 3)]), make_parameters([(6, 5, 3, 3)])
    whole, resumed = Came(straight, lr=0.01), Came(loaded, lr=0.01)
    train(whole, straight, range(2))
    train(resumed, loaded, range(2))
    state = saved_and_loaded(resumed)
    for name, tensor in state["state"][0].items():
        state["state"][0][name] = tensor.to(memory_format=torch.channels_last)
    resumed.load_state_dict(state)
    train(whole, straight, range(2, 4))
    train(resumed, loaded, range(2, 4))
    assert torch.equal(straight[0], loaded[0])
    assert same_state(whole, resumed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_of_an_optimizer_goes_on_as_the_original(copied: Callable[[Came], Came]) -> None:
    parameters = make_parameters([(160, 128), (40,)], torch.bfloat16)
    optimizer = Came8bit(parameters, lr=0.01, map="dynamic", stochastic_rounding=True, seed=5)
    train(optimizer, parameters, range(2))
    for parameter in parameters:
        parameter.grad = None
    other = copied(optimizer)
    others = other.param_groups[0]["params"]
    train(optimizer, parameters, range(2, 4))
    train(other, others, range(2, 4))
    assert all(torch.equal(a, b) and a is not b for a, b in zip(parameters, others, strict=True))
    assert same_state(optimizer, other)


@pytest.mark.parametrize("optimizer", [Came, Came8bit])
def test_a_scalar_steps_as_a_vector_of_one_and_an_empty_parameter_stays(optimizer: type[Came]) -> None:
    vector, scalars = nn.Parameter(torch.ones(1)), [nn.Parameter(torch.ones(())) for _ in range(2)]
    empty = [nn.Parameter(torch.ones(shape)) for shape in ((0,), (0, 5), (5, 0))]
    parameters = [vector, *empty, *scalars]
    built = optimizer(parameters, lr=0.01)
    for gradient in (0.5, -2.0, 0.1):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        built.step()
    assert vector.item() != 1.0
    assert scalars[0].item() == scalars[1].item() == vector.item()


def test_a_rate_may_be_a_tensor() -> None:
    one, two = make_parameters([(24, 40), (40,)]), make_parameters([(24, 40), (40,)])
    train(Came(one, lr=0.25), one, range(2))
    train(Came(two, lr=torch.tensor(0.25)), two, range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": -1.0}, "lr -1.0"),
        ({"betas": (0.9, 0.999)}, "three in"),
        ({"betas": (0.9, 1.9, 0.999)}, "three in"),
        ({"eps": (1e-30,)}, "must be two"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"seed": 2**63}, "63 bits"),
        ({"kernels": "tritn"}, "kernels 'tritn'"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Came8bit(make_parameters([(2, 2)]), **{"lr": 0.01, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.complex64])
def test_parameters_of_other_dtypes_and_sparse_gradients_are_refused_and_nothing_moves(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4, dtype=dtype))]
    optimizer = Came(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match=f"parameter 1 is {str(dtype).removeprefix('torch.')}"):
        optimizer.step()
    assert (parameters[0] == 1).all()
    sparse = Came([table := nn.Parameter(torch.ones(4, 4))], lr=0.1)
    table.grad = torch.ones(4, 4).to_sparse()
    with pytest.raises(ValueError, match="gradient 0 is float32, sparse_coo"):
        sparse.step()


@pytest.mark.parametrize("optimizer", [Came, Came8bit])
def test_a_gradient_that_is_not_finite_is_not_hidden(optimizer: type[Came]) -> None:
    for bad in (float("nan"), float("inf")):
        parameters = make_parameters([(160, 128), (40,)])
        built = optimizer(parameters, lr=0.01)
        train(built, parameters, range(2))
        for parameter in parameters:
            parameter.grad.view(-1)[3] = bad
        built.step()
        assert all(parameter.isnan().any() for parameter in parameters)


def test_learning_rate_of_a_scheduler_and_of_each_group_is_used() -> None:
    parameters = make_parameters([(24, 40), (24, 40)])
    parameters[1].data.copy_(parameters[0].data)
    start = parameters[0].detach().clone()
    optimizer = Came([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.02}], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    for parameter in parameters:
        parameter.grad = gradient.clone()
    optimizer.step()
    once = Came([nn.Parameter(start.clone())], lr=0.005)
    (alone,) = once.param_groups[0]["params"]
    alone.grad = gradient.clone()
    once.step()
    assert torch.equal(parameters[0], alone)
    torch.testing.assert_close(parameters[1] - start, 2 * (parameters[0] - start), rtol=1e-4, atol=1e-6)


def test_a_parameter_without_gradient_stays_and_a_closure_gives_the_loss() -> None:
    parameters = make_parameters([(24, 40), (24, 40)])
    idle = parameters[1].detach().clone()
    optimizer = Came8bit(parameters, lr=0.01, weight_decay=0.1)

    def closure() -> Tensor:
        loss = parameters[0].square().sum()
        loss.backward()
        return loss

    before = parameters[0].square().sum().item()
    assert optimizer.step(closure).item() == before
    assert parameters[0].square().sum().item() < before
    assert torch.equal(parameters[1], idle)


def regression_loss(optimizer: type[Came]) -> float:
    """Loss that a two-layer network reaches on a fixed nonlinear regression."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 32)
    targets = torch.tanh(inputs @ torch.randn(32, 8))
    network = nn.Sequential(nn.Linear(32, 640), nn.SiLU(), nn.Linear(640, 64), nn.SiLU(), nn.Linear(64, 8))
    built = optimizer(network.parameters(), lr=1e-3)
    for _ in range(150):
        built.zero_grad()
        loss = nn.functional.mse_loss(network(inputs), targets)
        loss.backward()
        built.step()
    return loss.item()


def test_came8bit_converges_as_came_does() -> None:
    exact, coarse = regression_loss(Came), regression_loss(Came8bit)
    assert exact < 0.05
    assert coarse < 1.2 * exact

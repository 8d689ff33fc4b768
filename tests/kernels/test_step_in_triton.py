"""The Triton step of CAME and CAME-8bit against the step in PyTorch, from equal states."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from measuring import poisoned_memory
from torch import Tensor, nn

from kernels.came8bit import Came, Came8bit, state, step_in_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# packed under `small_tiles`, with odd sizes and a tail; packed without; a 1x1 convolution; small ones; single rows and
# columns; others
SHAPES = [
    (97, 43),
    (64, 112),
    (50, 45, 1, 1),
    (24, 48),
    (24, 40),
    (1, 7),
    (9, 1),
    (2500,),
    (1,),
    (6, 1, 3, 3),
    (2, 3, 4),
]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, and tiles are so small that matrices of tests have many."""
    with poisoned_memory():
        yield


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Matrices of a test's size have several strips, tiles, chunks and blocks, and are kept in 8 bits."""
    monkeypatch.setattr(state, "QUANTIZED_ABOVE", 2000)
    monkeypatch.setattr(step_in_triton, "TILE", {"STRIP": 64, "ROWS": 32, "COLUMNS": 32})
    monkeypatch.setattr(step_in_triton, "CHUNK", 32)
    step_in_triton.plan_of.cache_clear()
    yield
    step_in_triton.plan_of.cache_clear()


def make(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[nn.Parameter]:
    """Parameters that depend on their place only."""
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE, dtype)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    """Gradients whose scale differs by rows and steps, so that clipping happens at some."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        rows = torch.rand((parameter.shape[0],) + (1,) * (parameter.dim() - 1), generator=generator)
        scaled = noise * rows * scale * (10.0 if step % 4 == 3 else 0.01)
        parameter.grad = scaled.to(DEVICE, parameter.dtype)


def compared(
    optimizer: type[Came], shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, steps: int = 2, **options
) -> None:
    """Step both ways. After each step parameters and state are compared, and Triton's are set to PyTorch's."""
    ours, theirs = make(shapes, dtype), make(shapes, dtype)
    first = optimizer(ours, lr=1e-3, weight_decay=0.1, kernels="triton", **options)
    second = optimizer(theirs, lr=1e-3, weight_decay=0.1, kernels="reference", **options)
    # large gradients first, whose update is clipped, and then small ones, whose update is not
    for step in range(3, 3 + steps):
        before = [parameter.detach().clone() for parameter in ours]
        for parameters, built in ((ours, first), (theirs, second)):
            set_gradients(parameters, step)
            built.step()
        for one, two, old in zip(ours, theirs, before, strict=True):
            assert_parameters(one.detach(), two.detach(), old)
            assert_states(first.state[one], second.state[two])
            one.data.copy_(two.data)
        first.load_state_dict(second.state_dict())


def assert_parameters(ours: Tensor, theirs: Tensor, before: Tensor) -> None:
    """Equal to 1e-6 of the parameter and of the step; in bfloat16 one rounding apart in 1 of 200 places."""
    if ours.dtype == torch.bfloat16:
        assert (ours != theirs).sum() <= max(1, ours.numel() // 200)
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=0)
        return
    largest = (theirs - before).abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6 * largest)


def assert_states(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Codes at most one level apart in 0.1 % of places, all else to float32's rounding."""
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        if one.dtype == torch.uint8:
            difference = (one.int() - theirs[name].int()).abs()
            assert difference.max() <= 1 and (difference > 0).sum() <= one.numel() / 1000
        else:
            largest = theirs[name].abs().max().item()
            torch.testing.assert_close(one, theirs[name], rtol=3e-6, atol=1e-6 * largest, msg=lambda m, n=name: n + m)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(Came, {}), (Came8bit, {}), (Came8bit, {"map": "dynamic"}), (Came8bit, {"bias_correction": True})],
)
def test_the_step_is_the_one_in_pytorch_at_odd_sizes(optimizer: type[Came], options: dict) -> None:
    compared(optimizer, SHAPES, **options)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("stochastic", [False, True])
def test_bfloat16_parameters_round_as_in_pytorch(stochastic: bool) -> None:
    shapes = [(97, 43), (64, 112), (24, 48), (2500,), (6, 1, 3, 3)]
    compared(Came8bit, shapes, torch.bfloat16, stochastic_rounding=stochastic)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_ties_of_bfloat16_go_to_the_even_neighbour() -> None:
    ends = []
    for kernels in ("triton", "reference"):
        # 192 less a 128th of it is 190.5, half-way between neighbours; 224 and 128 give others
        parameter = nn.Parameter(torch.tensor([192.0, 224.0, 128.0, 160.0], device=DEVICE).bfloat16().repeat(8))
        parameter.grad = torch.zeros_like(parameter)
        Came([parameter], lr=2**-7, weight_decay=1.0, kernels=kernels).step()
        ends.append(parameter.detach())
    assert torch.equal(*ends)
    assert ends[0][0] == 190


@pytest.mark.parametrize("columns", [41, 47, 48, 55, 83, 112, 2240])
def test_rows_and_columns_of_flat_entries_are_exact(columns: int) -> None:
    compared(Came8bit, [(16_500 // columns, columns)], steps=1)


def test_the_tiles_of_real_runs_compute_the_same() -> None:
    compared(Came8bit, [(514, 40), (60, 304), (40,)], steps=1)


@pytest.mark.parametrize("shapes", [[(131, 127)], [(40,), (3, 1, 3, 3)]])
def test_matrices_alone_and_others_alone_are_served(shapes: list[tuple[int, ...]]) -> None:
    compared(Came8bit, shapes, steps=1)


def test_groups_have_rates_of_their_own() -> None:
    parameters = make([(24, 40), (24, 40)], torch.float32)
    parameters[1].data.copy_(parameters[0])
    start = parameters[0].detach().clone()
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.02}]
    optimizer = Came8bit(groups, lr=0.01, kernels="triton")
    for parameter in parameters:
        parameter.grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    optimizer.step()
    torch.testing.assert_close(parameters[1] - start, 2 * (parameters[0] - start), rtol=1e-4, atol=1e-6)


def test_a_run_resumed_on_the_other_path_goes_on() -> None:
    parameters = make([(131, 127)], torch.float32)
    first = Came8bit(parameters, lr=1e-3, kernels="triton")
    set_gradients(parameters, 0)
    first.step()
    second = Came8bit(parameters, lr=1e-3, kernels="reference")
    second.load_state_dict(first.state_dict())
    set_gradients(parameters, 1)
    second.step()
    assert parameters[0].isfinite().all()


@pytest.mark.usefixtures("small_tiles")
def test_twice_gives_the_same_bits() -> None:
    ends = []
    for _ in range(2):
        parameters = make([(97, 43), (24, 48), (40,)], torch.float32)
        optimizer = Came8bit(parameters, lr=1e-3, kernels="triton")
        set_gradients(parameters, 0)
        optimizer.step()
        ends.append(parameters)
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("map", ["linear", "dynamic"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden(bad: float, map: str) -> None:
    parameters = make([(131, 127), (40,)], torch.float32)
    optimizer = Came8bit(parameters, lr=0.01, map=map, kernels="triton")
    set_gradients(parameters, 0)
    for parameter in parameters:
        parameter.grad.view(-1)[3] = bad
    optimizer.step()
    assert all(parameter.isnan().any() for parameter in parameters)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("map", ["linear", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_found_inf_keeps_parameters_and_state_as_they_are(dtype: torch.dtype, map: str) -> None:
    parameters = make(SHAPES, dtype)
    optimizer = Came8bit(parameters, lr=1.0, map=map, kernels="triton", stochastic_rounding=True)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    before = [parameter.detach().clone() for parameter in parameters]
    set_gradients(parameters, 0)
    optimizer.step()
    assert not any(torch.equal(one, two) for one, two in zip(parameters, before, strict=True))
    before = copy.deepcopy([(parameter.detach(), optimizer.state[parameter]) for parameter in parameters])
    optimizer.found_inf.fill_(1)
    for parameter in parameters:
        parameter.grad.fill_(math.nan)
    optimizer.step()
    for parameter, (old, state_before) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, old)
        assert all(torch.equal(optimizer.state[parameter][name], one) for name, one in state_before.items())


def test_large_and_small_gradients_stay_in_range() -> None:
    for scale in (1e-12, 1e12):
        ours, theirs = make([(131, 127), (50,)], torch.float32), make([(131, 127), (50,)], torch.float32)
        for parameters, kernels in ((ours, "triton"), (theirs, "reference")):
            set_gradients(parameters, 0, scale)
            Came8bit(parameters, lr=1e-3, kernels=kernels).step()
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_what_the_kernels_do_not_serve_steps_in_pytorch() -> None:
    turned = nn.Parameter(torch.randn(40, 24, device=DEVICE).t())
    plain = nn.Parameter(turned.detach().clone(memory_format=torch.contiguous_format))
    gradient = torch.randn(24, 40, device=DEVICE)
    for parameter, kernels in ((turned, "triton"), (plain, "reference")):
        parameter.grad = gradient.clone()
        Came8bit([parameter], lr=1e-3, kernels=kernels).step()
    torch.testing.assert_close(turned, plain)


def test_plan_and_scratch_of_the_4_8b_are_small() -> None:
    block = [(6720, 2240), (2240, 2240), (2240, 2240), (4480, 2240), (2240, 2240), (11200, 2240), (2240, 5600)]
    entries = 60 * sum(rows * columns for rows, columns in block)
    plan = step_in_triton.plan_of(tuple(block * 60), (2240,) * 600, torch.device("cpu"))
    room = step_in_triton.scratch(plan, torch.device("meta"))
    kept = [tensor for tensor in plan if isinstance(tensor, Tensor)]
    assert sum(tensor.nbytes for tensor in [*kept, *room.values()]) / entries < 0.04

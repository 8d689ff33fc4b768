"""bfloat16 parameters with an 8-bit correction: what a step keeps of float32, and how near it stays to float32."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kernels.came8bit import Came, Came8bit, correction
from kernels.came8bit.correction import joined, split
from kernels.optimizers import build_optimizer, state_bytes_per_parameter

SHAPES = [(160, 128), (24, 40), (24, 40), (40,), (6, 1, 3, 3)]
LEARNING_RATE = 1e-3


def numbers(count: int = 200_000) -> Tensor:
    """Numbers of all sizes that are normal in float32, with zeros, ones and both signs."""
    random = np.random.default_rng(0)
    values = random.standard_normal(count) * np.exp2(random.integers(-100, 100, count))
    return torch.tensor([0.0, -0.0, 1.0, -1.0, *values], dtype=torch.float32)


def to_16_bits(values: Tensor) -> np.ndarray:
    """Rounded to 16 significant bits, halves away from zero, in float64."""
    fraction, exponent = np.frexp(values.double().numpy())
    return np.ldexp(np.copysign(np.floor(np.abs(fraction) * 2**16 + 0.5), fraction), exponent - 16)


def test_both_parts_are_the_float32_rounded_to_16_significant_bits() -> None:
    values = numbers()
    assert np.array_equal(joined(*split(values)).double().numpy(), to_16_bits(values))


def test_the_parameter_is_the_nearest_bfloat16() -> None:
    values = numbers()
    rounded = torch.tensor(to_16_bits(values)).float()
    nearest, parameter = rounded.bfloat16(), split(values)[0]
    halves = (rounded.view(torch.int32) & 0xFFFF) == 0x8000  # torch rounds these to even, we away from zero
    assert torch.equal(parameter[~halves], nearest[~halves]) and halves.float().mean() < 0.01
    assert ((parameter - rounded).abs() <= (nearest - rounded).abs()).all()


def test_numbers_that_are_not_finite_stay_so() -> None:
    values = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert torch.equal(joined(*split(values)).nan_to_num(7.0), values.nan_to_num(7.0))


# NaN has many bit patterns. NVIDIA's GPUs compute the first one, x86's CPUs the fourth.
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FFFFF7F, 0x7FC00000, 0xFFC00000, 0xFFFFFF80, 0xFFFFFFFF], ids=hex)
def test_every_nan_leaves_a_parameter_that_is_nan(bits: int) -> None:
    values = torch.tensor(np.array([bits], dtype=np.uint32).view(np.int32)).view(torch.float32)
    parameter, rest = split(values)
    assert parameter.isnan().all() and joined(parameter, rest).isnan().all()


def parameters_of(dtype: torch.dtype = torch.bfloat16) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    # float32 parameters begin at the same numbers, so that all differences are those of rounding
    return [nn.Parameter(torch.randn(shape, generator=generator).bfloat16().to(dtype)) for shape in SHAPES]


def train(optimizer: Came, parameters: list[nn.Parameter], steps: range, seed: int = 0) -> None:
    """Step with gradients that depend on seed and step alone, and are the same in both number formats."""
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator) + 0.3
            parameter.grad = gradient.bfloat16().to(parameter.dtype)
        optimizer.step()


def test_steps_below_half_a_gap_add_up_as_in_float32() -> None:
    parameter, exact = (nn.Parameter(torch.ones(64, 64, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    optimizer, peer = Came([parameter], lr=2e-5, correction=True), Came([exact], lr=2e-5)
    for _ in range(20):
        for one in (parameter, exact):
            one.grad = torch.ones_like(one)
        optimizer.step()
        peer.step()
    held = joined(parameter.detach(), optimizer.state[parameter]["correction"])
    # a step of CAME is more than 2e-5 here; each is rounded by up to 2^-17 of 1
    assert (exact - 1).abs().min() > 100 * 2**-17
    torch.testing.assert_close(held, exact.detach(), rtol=0, atol=20 * 2**-17)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_training_stays_nearer_to_float32_than_by_stochastic_rounding(seed: int) -> None:
    exact = parameters_of(torch.float32)
    train(Came8bit(exact, lr=LEARNING_RATE), exact, range(30), seed)
    distance = {}
    for name in ("correction", "stochastic_rounding"):
        parameters = parameters_of()
        options = {name: True, "seed": seed}
        train(Came8bit(parameters, lr=LEARNING_RATE, **options), parameters, range(30), seed)
        pairs = zip(parameters, exact, strict=True)
        distance[name] = sum((one.float() - other).square().sum().item() for one, other in pairs) ** 0.5
    print(f"seed {seed}: {distance}")
    assert 3 * distance["correction"] < distance["stochastic_rounding"]


def test_it_draws_no_random_bits() -> None:
    ends = []
    for seed in (0, 1):
        parameters = parameters_of()
        train(Came8bit(parameters, lr=LEARNING_RATE, correction=True, seed=seed), parameters, range(3))
        ends.append(parameters)
    assert all(map(torch.equal, *ends))


def test_parameters_of_one_shape_step_as_each_does_alone() -> None:
    together, alone = parameters_of(), parameters_of()
    train(Came8bit(together, lr=LEARNING_RATE, correction=True), together, range(3))
    optimizers = [Came8bit([one], lr=LEARNING_RATE, correction=True) for one in alone]
    for step in range(3):
        for parameter in alone:  # the gradients of `train` are drawn one behind the other
            parameter.grad = None
        generator = torch.Generator().manual_seed(step)
        for parameter, optimizer in zip(alone, optimizers, strict=True):
            parameter.grad = (torch.randn(parameter.shape, generator=generator) + 0.3).bfloat16()
            optimizer.step()
    assert all(map(torch.equal, together, alone))


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for piece in (correction.PIECE, 1000):
        monkeypatch.setattr(correction, "PIECE", piece)
        parameters = parameters_of()
        train(Came8bit(parameters, lr=LEARNING_RATE, weight_decay=0.1, correction=True), parameters, range(2))
        ends.append(parameters)
    assert all(map(torch.equal, *ends))


def test_a_resumed_run_ends_at_the_same_bits() -> None:
    whole, parameters = parameters_of(), parameters_of()
    train(Came8bit(whole, lr=LEARNING_RATE, correction=True), whole, range(4))
    first = Came8bit(parameters, lr=LEARNING_RATE, correction=True)
    train(first, parameters, range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = Came8bit(parameters, lr=LEARNING_RATE, correction=True)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, parameters, range(2, 4))
    assert all(map(torch.equal, whole, parameters))


def test_a_state_without_corrections_is_refused() -> None:
    parameters = parameters_of()
    plain = Came8bit(parameters, lr=LEARNING_RATE, stochastic_rounding=True)
    train(plain, parameters, range(1))
    with pytest.raises(ValueError, match="optimizer state of parameter 0"):
        Came8bit(parameters, lr=LEARNING_RATE, correction=True).load_state_dict(plain.state_dict())


def test_float32_parameters_have_none() -> None:
    parameters = parameters_of(torch.float32)
    optimizer = Came8bit(parameters, lr=LEARNING_RATE, correction=True)
    train(optimizer, parameters, range(1))
    assert not any("correction" in state for state in optimizer.state.values())


def test_parameter_and_state_of_a_large_matrix_take_4_bytes_an_entry() -> None:
    parameter = nn.Parameter(torch.empty(2240, 2240, dtype=torch.bfloat16, device="meta"))
    parameter.grad = torch.empty_like(parameter)
    optimizer = build_optimizer("came8bit", [parameter], LEARNING_RATE, 0.0, correction=True)
    optimizer.step()
    assert 2 + state_bytes_per_parameter(optimizer) == pytest.approx(4.0, abs=0.02)


def test_it_is_refused_beside_stochastic_rounding() -> None:
    with pytest.raises(ValueError, match="stochastic_rounding with correction"):
        Came(parameters_of(), lr=LEARNING_RATE, stochastic_rounding=True, correction=True)

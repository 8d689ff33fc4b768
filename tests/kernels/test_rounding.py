"""Stochastic rounding of bfloat16 parameters: unbiased, one of two neighbours, the same bits in every run."""

import io

import pytest
import torch
from torch import Tensor, nn

from kernels.came8bit import Came, Came8bit, rounding
from kernels.came8bit.rounding import key_of, random_bits, to_bfloat16


def draw(values: Tensor, seed: int) -> Tensor:
    """`values` rounded with the bits of one key."""
    entries = torch.arange(values.numel(), dtype=torch.int32)
    return to_bfloat16(values, random_bits(key_of(seed, 0, 0), entries))


def test_the_mean_of_many_draws_is_the_number() -> None:
    values = torch.tensor([1.0 + 1e-3, -1.0 - 1e-3, 3.14159, -1e-20, 0.7, 65000.3]).repeat(200)
    draws = torch.stack([draw(values, seed) for seed in range(200)]).double().unflatten(1, (200, 6)).flatten(0, 1)
    gap = torch.finfo(torch.bfloat16).eps * values[:6].abs().double()
    # 40,000 draws: the mean of numbers within one gap is within 5 standard deviations of at most 1/2 gap / 200
    assert ((draws.mean(0) - values[:6].double()).abs() <= 5 * gap / 2 / 200).all()


def test_a_draw_is_one_of_the_two_neighbours_and_exact_numbers_stay() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    down = (values.view(torch.int32) & -0x10000).view(torch.float32)
    up = ((values.view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
    rounded = draw(values, 1).float()
    assert ((rounded == down) | (rounded == up)).all()
    assert ((rounded == down).any()) and (rounded == up).any()
    assert torch.equal(draw(down, 2).float(), down)


def test_what_is_not_finite_stays() -> None:
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7F800000, -0x800000], dtype=torch.int64).to(torch.int32)
    rounded = draw(bits.view(torch.float32), 0)
    assert rounded[:2].isnan().all()
    assert rounded[2:].tolist() == [float("inf"), float("-inf")]


def test_bits_are_even_and_unlike_those_of_neighbours_in_entry_step_parameter_and_seed() -> None:
    entries = torch.arange(2**15, dtype=torch.int32)
    first = random_bits(key_of(0, 0, 0), entries)
    others = [random_bits(key_of(*key), entries) for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert first.min() >= 0 and first.max() < 2**16
    others.append(torch.roll(first, 1))
    for other in others:
        # each of 16 bits agrees half of the time: 5 standard deviations of 32,768 coins
        same = torch.stack([((first ^ other) >> bit) & 1 for bit in range(16)]).double().mean(1)
        assert ((same - 0.5).abs() < 5 * 0.5 / 2**7.5).all()
    ones = torch.stack([(first >> bit) & 1 for bit in range(16)]).double().mean(1)
    assert ((ones - 0.5).abs() < 5 * 0.5 / 2**7.5).all()


def parameters_of(dtype: torch.dtype = torch.bfloat16) -> list[nn.Parameter]:
    """A quantised matrix, two alike, a vector and a depth-wise convolution, which one call may update together."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(160, 128), (24, 40), (24, 40), (40,), (6, 1, 3, 3)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    """Step with gradients that depend on the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def trained(seed: int, steps: int = 4) -> list[Tensor]:
    parameters = parameters_of()
    train(Came8bit(parameters, lr=1e-3, stochastic_rounding=True, seed=seed), parameters, range(steps))
    return [parameter.detach() for parameter in parameters]


def test_runs_of_one_seed_repeat_and_those_of_two_differ() -> None:
    assert all(torch.equal(one, two) for one, two in zip(trained(0), trained(0), strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(trained(0), trained(1), strict=True))


def test_equal_parameters_draw_bits_of_their_own() -> None:
    parameters = [nn.Parameter(torch.ones(24, 40, dtype=torch.bfloat16)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    Came(parameters, lr=1e-3, stochastic_rounding=True).step()
    assert not torch.equal(*parameters)


def test_a_resumed_run_draws_what_an_uninterrupted_one_does() -> None:
    parameters = parameters_of()
    first = Came8bit(parameters, lr=1e-3, stochastic_rounding=True)
    train(first, parameters, range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = Came8bit(parameters, lr=1e-3, stochastic_rounding=True)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, parameters, range(2, 4))
    assert all(torch.equal(one, two) for one, two in zip(trained(0), parameters, strict=True))


@pytest.mark.parametrize("shape", [(160, 128), (300, 130)])
def test_pieces_do_not_show(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (torch.ones(shape, dtype=torch.bfloat16).view(1, -1) for _ in range(2))
    movement = torch.randn(shape, generator=torch.Generator().manual_seed(0)).view(1, -1)
    rounding.descend(whole, movement, 0.1, 0.01, [key_of(1, 2, 3)])
    monkeypatch.setattr(rounding, "PIECE", 1000)
    rounding.descend(cut, movement, 0.1, 0.01, [key_of(1, 2, 3)])
    assert torch.equal(whole, cut)


def test_steps_below_half_a_gap_add_up_only_under_stochastic_rounding() -> None:
    ends = {}
    for stochastic in (False, True):
        parameter = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        optimizer = Came([parameter], lr=1e-6, stochastic_rounding=stochastic)
        exact = nn.Parameter(torch.ones(64, 64))
        peer = Came([exact], lr=1e-6)
        for _ in range(20):
            for one in (parameter, exact):
                one.grad = torch.ones_like(one)
            optimizer.step()
            peer.step()
        ends[stochastic] = (parameter.float() - 1).mean().item()
    moved = (exact - 1).mean().item()
    assert ends[False] == 0
    # each draw moves by the gap 2^-8 with probability 0.008: 5 standard deviations of the mean of 4096 sums of 20
    assert abs(ends[True] - moved) < 1.3e-4 < abs(moved) / 4


def test_float32_parameters_are_untouched_by_the_choice() -> None:
    exact, other = parameters_of(torch.float32), parameters_of(torch.float32)
    train(Came8bit(exact, lr=1e-3), exact, range(2))
    train(Came8bit(other, lr=1e-3, stochastic_rounding=True), other, range(2))
    assert all(torch.equal(one, two) for one, two in zip(exact, other, strict=True))

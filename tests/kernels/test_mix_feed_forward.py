"""The Mix-FFN's inside: the Triton kernels' results and gradients against one statement in float64."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from measuring import poisoned_memory
from torch import Tensor

from kernels import kernel_choice
from kernels.mix_feed_forward import mix_feed_forward

pytest.importorskip("triton")
from kernels.mix_feed_forward import triton_kernel

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# images, grid, inner channels: below, at and above the width and height of a strip; channels beyond a block of 128
CASES = [(1, (1, 1), 1), (1, (1, 7), 3), (2, (3, 4), 16), (1, (2, 5), 130), (1, (17, 3), 2)]
# of a rounding to the dtype; the interpreter cuts a bfloat16 off where a GPU rounds it
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-7}


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    """A result that a kernel leaves unwritten is then NaN."""
    with poisoned_memory():
        yield


def make_inputs(
    images: int, size: tuple[int, int], inner: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens and the output's gradient of `dtype`, weights and bias in float32."""
    generator = torch.Generator().manual_seed(images + size[0] * size[1] + inner)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    tokens = size[0] * size[1]
    x, gradient = normal(images, tokens, 2 * inner) * scale, normal(images, tokens, inner)
    return x.to(dtype), normal(2 * inner, 1, 3, 3), normal(2 * inner), gradient.to(dtype)


def statement(x: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    """What the operation is, on an image with its channels first."""
    image = x.transpose(1, 2).unflatten(2, size)
    mixed = F.conv2d(image * image.sigmoid(), weight, bias, padding=1, groups=len(bias))
    value, gate = mixed.chunk(2, dim=1)
    return (value * gate * gate.sigmoid()).flatten(2).transpose(1, 2)


def with_gradients(
    function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """The function's value and the gradients of x, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, gradient)


def ours(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Value and gradients by the Triton kernels."""
    return with_gradients(lambda *leaves: mix_feed_forward(*leaves, size, "triton"), x, weight, bias, gradient)


def exact(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Value and gradients by the statement in float64."""
    doubles = [tensor.double() for tensor in (x, weight, bias, gradient)]
    return with_gradients(lambda *leaves: statement(*leaves, size), *doubles)


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Float32 arithmetic throughout: beyond one rounding to the result's dtype, 1e-6 of the largest entry.

    The gradient of x is further off in bfloat16, as the gradient between the kernels is rounded to it too.
    """
    for name, one, other in zip(("out", "x", "weight", "bias"), found, expected, strict=True):
        own = ROUNDING[dtype] if name in ("out", "x") else ROUNDING[torch.float32]
        largest = other.abs().max().item()
        between = 2 * ROUNDING[dtype] if name == "x" and dtype == torch.bfloat16 else 0.0
        tolerance = (1e-6 + between) * largest + 1e-7
        torch.testing.assert_close(
            one.double(), other, rtol=own, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    ("images", "size", "inner", "dtype"),
    [
        *((*case, torch.float32) for case in CASES),
        *((1, (3, 2), 5, dtype) for dtype in (torch.float16, torch.bfloat16)),
    ],
)
def test_the_result_and_all_gradients_are_the_statements(
    images: int, size: tuple[int, int], inner: int, dtype: torch.dtype
) -> None:
    inputs = make_inputs(images, size, inner, dtype)
    found = ours(*inputs, size)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32, torch.float32]
    assert_close(found, exact(*inputs, size), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_may_be_of_another_dtype_than_tokens_and_get_gradients_of_their_own(dtype: torch.dtype) -> None:
    x, weight, bias, gradient = make_inputs(1, (2, 3), 4)
    weight, bias = weight.to(dtype), bias.to(dtype)
    _, _, weight_gradient, bias_gradient = ours(x, weight, bias, gradient, (2, 3))
    assert weight_gradient.dtype == bias_gradient.dtype == dtype
    _, _, expected, expected_bias = exact(x, weight, bias, gradient, (2, 3))
    torch.testing.assert_close(weight_gradient.double(), expected, rtol=2**-7, atol=1e-5)
    torch.testing.assert_close(bias_gradient.double(), expected_bias, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_any_number_of_programs_may_share_the_strips(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "PARTS", parts)
    monkeypatch.setattr(triton_kernel, "TILE", {"BLOCK": 16, "ROWS": 2, "COLUMNS": 2})
    inputs = make_inputs(1, (3, 3), 2)  # four strips
    assert_close(ours(*inputs, (3, 3)), exact(*inputs, (3, 3)), torch.float32)


@pytest.mark.parametrize("tile", [(16, 3, 1), (32, 1, 8)])
def test_every_tile_computes_the_same(tile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "TILE", dict(zip(("BLOCK", "ROWS", "COLUMNS"), tile, strict=True)))
    inputs = make_inputs(1, (4, 2), 17)
    assert_close(ours(*inputs, (4, 2)), exact(*inputs, (4, 2)), torch.float32)


def test_tensors_of_any_strides_are_taken() -> None:
    x, weight, bias, gradient = make_inputs(2, (2, 3), 6)
    expected = exact(x, weight, bias, gradient, (2, 3))

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    strided = turned(x), turned(weight), bias.repeat_interleave(2)[::2], turned(gradient)
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert_close(ours(*strided, (2, 3)), expected, torch.float32)
    ones = torch.ones((), device=DEVICE).expand_as(gradient)
    assert_close(ours(x, weight, bias, ones, (2, 3)), exact(x, weight, bias, ones, (2, 3)), torch.float32)


def test_nothing_beside_the_tensors_reaches_a_result() -> None:
    inputs = make_inputs(1, (2, 3), 5)

    def among_nans(tensor: Tensor) -> Tensor:
        padded = torch.full((tensor.numel() + 2000,), math.nan, dtype=tensor.dtype, device=DEVICE)
        padded[1000:-1000] = tensor.flatten()
        return padded[1000:-1000].view(tensor.shape)

    found, expected = ours(*map(among_nans, inputs), (2, 3)), ours(*inputs, (2, 3))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_nothing_beside_the_results_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = []
    new_empty = Tensor.new_empty

    def guarded(like: Tensor, *shape: int, dtype: torch.dtype | None = None, device: str = DEVICE) -> Tensor:
        if shape == (0,):  # the interpreter's, when it copies an argument
            return new_empty(like, shape, device=device)
        entries = math.prod(shape or like.shape)
        buffers.append(torch.full((entries + 8192,), 7.0, dtype=dtype or like.dtype, device=device))
        return buffers[-1][4096:-4096].view(shape or like.shape)

    inputs = make_inputs(1, (3, 5), 5)
    expected = exact(*inputs, (3, 5))
    monkeypatch.setattr(torch, "empty_like", guarded)
    monkeypatch.setattr(Tensor, "new_empty", guarded)
    found = ours(*inputs, (3, 5))
    monkeypatch.undo()
    assert_close(found, expected, torch.float32)
    assert len(buffers) == 4  # the result, the gradient between the kernels, the partial sums, the gradient of x
    assert all((buffer[:4096] == 7).all() and (buffer[-4096:] == 7).all() for buffer in buffers)


def test_twice_gives_the_same_bits() -> None:
    inputs = make_inputs(1, (1, 5), 3)  # two strips, so that partial sums are added up
    first, second = ours(*inputs, (1, 5)), ours(*inputs, (1, 5))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("kernels", ["triton", "reference"])
@pytest.mark.parametrize("large", [65504.0, 3e4])
def test_float16_results_beyond_its_range_are_its_largest_number(large: float, kernels: kernel_choice.Choice) -> None:
    x, weight, bias, gradient = make_inputs(1, (3, 5), 8, torch.float16)
    x = torch.where(x.abs() < 0.5, x, x.sign() * large)
    weight[:8] *= 1e-3  # some values of the result are in range, some are not
    found = with_gradients(lambda *leaves: mix_feed_forward(*leaves, (3, 5), kernels), x, weight, bias, gradient)
    expected = exact(x, weight, bias, gradient, (3, 5))
    inside = expected[0].abs() < 65504
    assert inside.any() and not inside.all()
    torch.testing.assert_close(found[0].double(), expected[0].clamp(-65504, 65504), rtol=1e-3, atol=1e-5 * 65504)
    beyond = expected[0].abs() >= 65536
    assert beyond.any()
    assert torch.equal(found[0][beyond].double(), 65504 * expected[0][beyond].sign())
    # a gradient is never limited: loss scaling looks for its infinities
    inside = expected[1].abs() < 65504
    torch.testing.assert_close(found[1].double()[inside], expected[1][inside], rtol=1e-3, atol=1e-5 * 65504)
    assert found[1][expected[1].abs() > 65536].isinf().all()
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6 * other.abs().max().item())


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e3), (torch.float32, 1e6), (torch.bfloat16, 1e6)])
def test_large_activations_are_as_exact_as_small_ones(dtype: torch.dtype, scale: float) -> None:
    inputs = make_inputs(1, (2, 3), 4, dtype, scale)
    assert_close(ours(*inputs, (2, 3)), exact(*inputs, (2, 3)), dtype)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_not_hidden(bad: float) -> None:
    x, weight, bias, gradient = make_inputs(1, (4, 4), 2)
    x[0, 5, 0] = bad
    out, x_gradient, weight_gradient, _ = ours(x, weight, bias, gradient, (4, 4))
    touched = torch.zeros(4, 4, dtype=torch.bool, device=DEVICE)
    touched[:3, :3] = True
    assert torch.equal(~out[0, :, 0].isfinite(), touched.flatten())
    assert out[0, :, 1].isfinite().all()
    assert not x_gradient[0, 5, 0].isfinite()
    assert not weight_gradient[0].isfinite().all()


def test_a_second_derivative_is_refused() -> None:
    x, weight, bias, gradient = make_inputs(1, (2, 2), 2)
    x.requires_grad_()
    out = mix_feed_forward(x, weight, bias, (2, 2), "triton")
    (first,) = torch.autograd.grad(out, x, gradient.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("kernels", ["triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype, kernels: kernel_choice.Choice) -> None:
    x, weight, bias, _ = make_inputs(1, (3, 3), 4, dtype)
    expected = mix_feed_forward(x, weight, bias, (3, 3), kernels)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = mix_feed_forward(x, weight, bias, (3, 3), kernels)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_a_compiled_caller_has_no_graph_break_and_gives_the_same() -> None:
    """Of what `auto` takes here: on a GPU the kernels, elsewhere the reference, for which no code need be generated."""
    inputs = make_inputs(2, (5, 6), 64, torch.bfloat16)

    def caller(*leaves: Tensor) -> Tensor:
        return mix_feed_forward(*leaves, (5, 6))

    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = torch.compile(caller, fullgraph=True, backend=backend)
    expected = with_gradients(caller, *inputs)
    for one, other in zip(with_gradients(compiled, *inputs), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_on_the_cpu_auto_takes_the_reference() -> None:
    inputs = [tensor.cpu() for tensor in make_inputs(1, (3, 3), 4, torch.bfloat16)]
    found = mix_feed_forward(*inputs[:3], (3, 3))
    assert torch.equal(found, mix_feed_forward(*inputs[:3], (3, 3), "reference"))
    torch.testing.assert_close(found.double(), exact(*inputs, (3, 3))[0], rtol=0.05, atol=0.05)


def test_float64_goes_to_the_reference_under_auto_and_is_refused_under_triton() -> None:
    x, weight, bias, _ = (tensor.double() for tensor in make_inputs(2, (3, 4), 3))
    found = mix_feed_forward(x, weight, bias, (3, 4))
    torch.testing.assert_close(found, statement(x, weight, bias, (3, 4)), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"no kernel for torch\.float64"):
        mix_feed_forward(x, weight, bias, (3, 4), "triton")


@pytest.mark.parametrize("kernels", ["auto", "triton", "reference"])
def test_shapes_that_do_not_fit_are_refused_in_words(kernels: kernel_choice.Choice) -> None:
    x, weight, bias, _ = make_inputs(1, (2, 3), 2)
    with pytest.raises(ValueError, match="6 tokens are no grid of 3 x 3"):
        mix_feed_forward(x, weight, bias, (3, 3), kernels)
    for wrong in ((weight[:2], bias), (weight, bias[:3]), (weight[..., :2], bias)):
        with pytest.raises(ValueError, match="does not fit 4 channels"):
            mix_feed_forward(x, *wrong, (2, 3), kernels)
    with pytest.raises(ValueError, match="does not fit 3 channels"):
        mix_feed_forward(x[..., :3], weight[:3], bias[:3], (2, 3), kernels)

"""AdaLN modulation and the gated residual: their definitions in float64, float16's limit, bits."""

from collections.abc import Callable

import pytest
import torch
from measuring import DEVICE, DTYPES, assert_near, poisoned_memory
from torch import Tensor

from kernels.kernel_choice import Choice
from kernels.modulation import gated_residual, modulate

pytest.importorskip("triton")

# batch, tokens, channels: one token, an odd count with an empty tail, more tokens than one program sums
SHAPES = [(2, 1, 16), (3, 19, 70), (1, 40, 33)]
Operation = Callable[..., Tensor]


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The definition, written out."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift


def added(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """The definition, written out."""
    return x + gate * y


PAIRS = [pytest.param(modulate, modulated, id="modulate"), pytest.param(gated_residual, added, id="gated_residual")]


def arguments_of(operation: Operation, shape: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Of normal numbers; those of time are chunks of one tensor, as a block's are."""
    batch, tokens, width = shape
    generator = torch.Generator().manual_seed(tokens)
    x, y = (torch.randn(batch, tokens, width, generator=generator).to(DEVICE, dtype) for _ in range(2))
    shift, scale, gate = torch.randn(batch, 3, width, generator=generator).to(DEVICE, dtype).chunk(3, dim=1)
    return [3 * x + 2, shift, scale] if operation is modulate else [x, gate, y]


def gradient_of(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """An output's gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(DEVICE, dtype)


def computed(operation: Operation, arguments: list[Tensor], gradient: Tensor, choice: Choice) -> list[Tensor]:
    """Output and gradients."""
    leaves = [argument.detach().requires_grad_() for argument in arguments]
    with poisoned_memory() if choice == "triton" else torch.enable_grad():
        out = operation(*leaves, choice)
        gradients = torch.autograd.grad(out, leaves, gradient)
    assert {tensor.dtype for tensor in (out, *gradients)} == {arguments[0].dtype}
    return [out.detach(), *gradients]


def expected(definition: Operation, arguments: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The same by the definition in float64."""
    leaves = [argument.detach().double().requires_grad_() for argument in arguments]
    out = definition(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.double())]


def assert_right(
    operation: Operation, definition: Operation, arguments: list[Tensor], choice: Choice, size: float = 1.0
) -> None:
    """Output and gradients are near the definition's, where the output's gradient is of `size`."""
    gradient = size * gradient_of(tuple(arguments[0].shape), arguments[0].dtype)
    names = ("output", "first gradient", "second gradient", "third gradient")
    actual = computed(operation, arguments, gradient, choice)
    for name, mine, right in zip(names, actual, expected(definition, arguments, gradient), strict=True):
        assert_near(mine, right, arguments[0].dtype, name)


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), *((SHAPES[1], dtype) for dtype in DTYPES[1:])],
    ids=str,
)
@pytest.mark.parametrize(("operation", "definition"), PAIRS)
def test_output_and_gradients_are_those_of_the_definition(
    operation: Operation, definition: Operation, shape: tuple[int, int, int], dtype: torch.dtype, choice: Choice
) -> None:
    assert_right(operation, definition, arguments_of(operation, shape, dtype), choice)


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("branch", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_values_for_a_product_are_the_float32_ones_rounded_once(
    shape: tuple[int, int, int], branch: torch.dtype, choice: Choice
) -> None:
    leaves = [argument.requires_grad_() for argument in arguments_of(modulate, shape, torch.float32)]
    gradient = gradient_of(shape, branch)
    with poisoned_memory() if choice == "triton" else torch.enable_grad():
        out, wide = modulate(*leaves, choice, branch), modulate(*leaves, choice)
        found = torch.autograd.grad(out, leaves, gradient)
    assert out.dtype == branch and wide.dtype == torch.float32
    cuts = choice == "triton" and branch == torch.bfloat16 and DEVICE == "cpu"  # as Triton's interpreter does
    assert cuts or torch.equal(out, wide.to(branch))
    assert ((out.float() - wide).abs() <= torch.finfo(branch).eps * wide.abs()).all()
    for name, mine, right in zip(
        ("x", "shift", "scale"), found, expected(modulated, leaves, gradient)[1:], strict=True
    ):
        assert_near(mine, right, torch.float32, name)  # of the stream's own precision, though the branch is narrow


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("branch", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_a_narrow_branch_is_added_to_a_float32_stream_in_float32(
    shape: tuple[int, int, int], branch: torch.dtype, choice: Choice
) -> None:
    x, gate, y = arguments_of(gated_residual, shape, torch.float32)
    leaves = [leaf.requires_grad_() for leaf in (x, gate, y.to(branch))]
    gradient = gradient_of(shape, torch.float32)
    with poisoned_memory() if choice == "triton" else torch.enable_grad():
        out = gated_residual(*leaves, choice)
        found = [out.detach(), *torch.autograd.grad(out, leaves, gradient)]
    dtypes = (torch.float32, torch.float32, torch.float32, branch)
    assert tuple(tensor.dtype for tensor in found) == dtypes
    for mine, right, dtype in zip(found, expected(added, leaves, gradient), dtypes, strict=True):
        assert_near(mine, right, dtype, str(dtype))


def test_the_kernels_keep_one_copy_of_the_stream_for_the_backward_pass() -> None:
    batch, tokens, width = shape = (2, 16, 64)
    values, row = batch * tokens * width, batch * width
    for operation, branch, most in (
        (modulate, "out", 4 * values + 4 * 3 * row + 2 * 4 * batch * tokens),  # x, the chunked row's tensor, statistics
        (gated_residual, "y", 2 * values + 4 * 3 * row),  # y, the chunked row's tensor
    ):
        leaves = arguments_of(operation, shape, torch.float32)
        if branch == "y":
            leaves[2] = leaves[2].bfloat16()
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            leaves = [leaf.requires_grad_() for leaf in leaves]
            operation(*leaves, "triton", *([torch.bfloat16] if branch == "out" else []))
        assert sum(saved.values()) == most


@pytest.mark.parametrize(("operation", "definition"), PAIRS)
def test_the_published_width(operation: Operation, definition: Operation) -> None:
    assert_right(operation, definition, arguments_of(operation, (1, 3, 2240), torch.bfloat16), "triton")


@pytest.mark.parametrize(("dtype", "largest"), [(torch.bfloat16, 1e6), (torch.float16, 65504.0)], ids=str)
@pytest.mark.parametrize(("operation", "definition"), PAIRS)
def test_activations_of_the_sizes_that_users_report_overflow_nothing(
    operation: Operation, definition: Operation, dtype: torch.dtype, largest: float
) -> None:
    arguments = arguments_of(operation, (1, 19, 70), dtype)
    arguments[0] = (arguments[0].float() * largest / 3).clamp(-largest, largest).to(dtype)
    if operation is gated_residual:
        arguments[2], arguments[1] = -arguments[0], arguments[1].abs().clamp(max=1)  # the sum stays in range
    right = definition(*(argument.double() for argument in arguments))
    assert right.abs().max() <= largest  # so that no result is one that the limit of float16 may change
    assert_right(operation, definition, arguments, "triton", size=1 / 64)  # the gate's gradient is to fit as well


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter's, of a gradient
@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("operation", [modulate, gated_residual])
def test_float16_results_out_of_range_are_its_largest_number_and_others_are_not(
    operation: Operation, choice: Choice
) -> None:
    arguments = arguments_of(operation, (2, 19, 70), torch.float16)
    time = arguments[2] if operation is modulate else arguments[1]
    arguments[1 if operation is modulate else 0][:] = 60000.0
    time[1] = 60000.0  # the second picture's scale or gate
    right = (modulated if operation is modulate else added)(*(argument.double() for argument in arguments))
    actual = computed(operation, arguments, gradient_of((2, 19, 70), torch.float16), choice)
    beyond = right.abs() >= 65520
    assert beyond.any() and not beyond.all()
    assert torch.equal(actual[0][beyond].double(), 65504 * right[beyond].sign())
    torch.testing.assert_close(actual[0][~beyond].double(), right[~beyond], rtol=1e-3, atol=1e-2)
    # a saturated result has the gradient of one that fits
    assert actual[-1 if operation is modulate else 1].isfinite().all()
    assert actual[1].ne(0).any()


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_and_nan_are_not_hidden(dtype: torch.dtype, choice: Choice) -> None:
    arguments = arguments_of(gated_residual, (1, 3, 16), dtype)
    arguments[0][0, 0, 0], arguments[0][0, 1, 1] = float("inf"), float("nan")
    out = gated_residual(*arguments, choice)
    assert out[0, 0, 0] == float("inf") and out[0, 1, 1].isnan()
    assert out.isfinite().sum() == out.numel() - 2


@pytest.mark.parametrize("operation", [modulate, gated_residual])
def test_a_second_run_gives_the_same_bits(operation: Operation) -> None:
    arguments, gradient = arguments_of(operation, (2, 10, 70), torch.float32), gradient_of((2, 10, 70), torch.float32)
    runs = [computed(operation, arguments, gradient, "triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("operation", [modulate, gated_residual])
def test_strides_of_arguments_and_of_the_gradient_change_nothing(operation: Operation) -> None:
    arguments, gradient = arguments_of(operation, (2, 5, 70), torch.float32), gradient_of((2, 5, 70), torch.float32)
    right = computed(operation, arguments, gradient, "triton")
    turned = [tensor.transpose(0, 2).contiguous().transpose(0, 2) for tensor in (*arguments, gradient)]
    assert not any(tensor.is_contiguous() for tensor in turned)
    mine = computed(operation, turned[:-1], turned[-1], "triton")
    assert all(torch.equal(a, b) for a, b in zip(mine, right, strict=True))


def test_one_row_of_time_for_all_pictures_may_be_expanded() -> None:
    arguments = arguments_of(modulate, (3, 5, 70), torch.float32)
    arguments[1:] = [row[:1].expand(3, -1, -1) for row in arguments[1:]]
    assert_right(modulate, modulated, arguments, "triton")


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("operation", [modulate, gated_residual])
def test_autocast_changes_nothing(operation: Operation, choice: Choice) -> None:
    arguments = arguments_of(operation, (2, 5, 70), torch.bfloat16)
    right = operation(*arguments, choice)
    with torch.autocast(DEVICE, torch.bfloat16):
        mine = operation(*arguments, choice)
    assert mine.dtype == torch.bfloat16
    assert torch.equal(mine, right)


@pytest.mark.parametrize("operation", [modulate, gated_residual])
def test_a_second_derivative_is_refused(operation: Operation) -> None:
    arguments = [argument.requires_grad_() for argument in arguments_of(operation, (2, 1, 16), torch.float32)]
    out = operation(*arguments, "triton")
    (gradient,) = torch.autograd.grad(out.square().sum(), arguments[2], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("operation", [modulate, gated_residual])
def test_what_the_kernels_cannot_take_goes_to_the_reference_or_is_refused(operation: Operation) -> None:
    arguments = arguments_of(operation, (2, 3, 16), torch.float32)
    mixed = [arguments[0].bfloat16(), *arguments[1:]]
    shared = [arguments[0], arguments[1][:1], arguments[2][: 1 if operation is modulate else 2]]
    for refused, says in ((mixed, "a mixture"), (shared, "one row"), ([a.double() for a in arguments], "float64")):
        assert torch.equal(operation(*refused, "auto"), operation(*refused, "reference"))
        with pytest.raises(ValueError, match=says):
            operation(*refused, "triton")

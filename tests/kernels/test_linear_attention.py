"""ReLU linear attention with QK norm: the materialised matrix in float64, diffusers, sizes that users report, bits."""

import pytest
import torch
from measuring import DEVICE, DTYPES, assert_near, poisoned_memory
from torch import Tensor

from kernels.kernel_choice import Choice
from kernels.linear_attention import NormWeights, linear_attention

pytest.importorskip("triton")

EPS = 1e-8
# batch, tokens, heads, channels of a head: one token, an odd count, one beyond a tile, one beyond a run of tiles
SHAPES = [(2, 1, 3, 16), (2, 19, 3, 32), (1, 65, 2, 16), (1, 260, 1, 32)]


class Case:
    """Arguments, a gradient of the output, and what both paths and the definition make of them."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, norm: bool) -> None:
        batch, tokens, heads, self.head_dim = shape
        width = heads * self.head_dim
        generator = torch.Generator().manual_seed(tokens)
        self.qkv = torch.randn(batch, tokens, 3 * width, generator=generator).to(DEVICE, dtype)
        if tokens == 1:  # its one weight, which divides its gradients, is not to be near zero
            self.qkv[..., : 2 * width] = self.qkv[..., : 2 * width].abs() + 0.5
        self.gradient = torch.randn(batch, tokens, width, generator=generator).to(DEVICE, dtype)
        weights = 1 + 0.3 * torch.randn(2, width, generator=generator).to(DEVICE)
        self.norms = (weights[0], weights[1]) if norm else None

    def computed(self, choice: Choice) -> list[Tensor]:
        """Output, gradient of qkv, and gradients of the norms' weights where there are any."""
        qkv, norms = self._leaves(self.qkv.dtype)
        with poisoned_memory() if choice == "triton" else torch.enable_grad():
            out = linear_attention(qkv, norms, self.head_dim, EPS, choice)
            gradients = torch.autograd.grad(out, [qkv, *(norms or ())], self.gradient)
        assert out.dtype == gradients[0].dtype == self.qkv.dtype
        return [out.detach(), *gradients]

    def expected(self) -> list[Tensor]:
        """The same by the definition, in float64."""
        qkv, norms = self._leaves(torch.float64)
        out = materialised(qkv, norms, self.head_dim)
        return [out.detach(), *torch.autograd.grad(out, [qkv, *(norms or ())], self.gradient.double())]

    def _leaves(self, dtype: torch.dtype) -> tuple[Tensor, NormWeights | None]:
        qkv = self.qkv.detach().to(dtype).requires_grad_()
        if self.norms is None:
            return qkv, None
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        queries, keys = (weight.to(wide).clone().requires_grad_() for weight in self.norms)
        return qkv, (queries, keys)

    def assert_right(self, choice: Choice) -> None:
        """Every result is near its definition; queries, keys and values each by their own largest gradient."""
        names = ["output", "queries", "keys", "values", "the queries' norm", "the keys' norm"]
        # a lone token's attention is its value: the gradients of its query and key are differences that should be 0
        scale = 1.0 if self.qkv.shape[1] == 1 else 0.0
        for name, actual, expected in zip(names, parts(self.computed(choice)), parts(self.expected()), strict=False):
            assert_near(actual, expected, self.qkv.dtype, name, scale)


def parts(results: list[Tensor]) -> list[Tensor]:
    """The gradient of qkv as three."""
    return [results[0], *results[1].chunk(3, dim=-1), *results[2:]]


def materialised(qkv: Tensor, norms: NormWeights | None, head_dim: int) -> Tensor:
    """Attention by the matrix of all weights between tokens."""
    q, k, v = qkv.chunk(3, dim=-1)
    if norms is not None:
        q = q * (q.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norms[0]
        k = k * (k.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norms[1]
    heads = [torch.stack(part.split(head_dim, dim=-1), dim=1) for part in (q.clamp(min=0), k.clamp(min=0), v)]
    weights = heads[0] @ heads[1].transpose(2, 3)
    out = weights @ heads[2] / (weights.sum(3, keepdim=True) + EPS)
    return torch.cat(out.unbind(1), dim=-1)


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "bare"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), *((SHAPES[1], dtype) for dtype in DTYPES[1:])],
    ids=str,
)
def test_output_and_gradients_are_those_of_the_materialised_matrix(
    shape: tuple[int, int, int, int], dtype: torch.dtype, norm: bool, choice: Choice
) -> None:
    Case(shape, dtype, norm).assert_right(choice)


def test_the_published_width_of_70_heads() -> None:
    Case((1, 2, 70, 32), torch.bfloat16, norm=True).assert_right("triton")


def test_output_and_gradients_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers.models.attention_processor")
    torch.manual_seed(0)
    peer = diffusers.Attention(48, heads=3, dim_head=16, kv_heads=3, qk_norm="rms_norm_across_heads").to(DEVICE)
    peer.set_processor(diffusers.SanaLinearAttnProcessor2_0())
    peer.to_out = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    torch.nn.init.normal_(peer.norm_q.weight)
    torch.nn.init.normal_(peer.norm_k.weight)
    projections = torch.cat([peer.to_q.weight, peer.to_k.weight, peer.to_v.weight])
    x = torch.randn(2, 19, 48, device=DEVICE, requires_grad=True)
    theirs = peer(x)
    ours = linear_attention(x @ projections.T, (peer.norm_q.weight, peer.norm_k.weight), 16, 1e-15, "triton")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    inputs, gradient = [x, peer.norm_q.weight, peer.norm_k.weight], torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(theirs, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "largest", "norm"),
    [(torch.bfloat16, 1e6, True), (torch.float16, 65504.0, True), (torch.float16, 65504.0, False)],
    ids=str,
)
def test_activations_of_the_sizes_that_users_report_overflow_nothing(
    dtype: torch.dtype, largest: float, norm: bool
) -> None:
    case = Case((1, 70, 1, 32), dtype, norm)
    case.qkv = (case.qkv.float() * largest / 3).clamp(-largest, largest).to(dtype)
    case.qkv[:, 5] = largest
    case.qkv[:, 6] = -largest
    case.assert_right("triton")
    out, exact = case.computed("reference")[0], case.expected()[0]
    assert exact.abs().max() <= largest  # so that no result is one that the limit of float16 may change
    assert_near(out, exact, dtype, "output of the reference")


def test_gradients_that_only_fit_float16_behind_the_norm_arrive() -> None:
    case = Case((1, 70, 1, 32), torch.float16, norm=True)
    case.qkv = (case.qkv.float() * 20000).clamp(-65504.0, 65504.0).half()
    case.gradient *= 1000
    case.assert_right("triton")
    assert not case.computed("reference")[1].isfinite().all()  # plain PyTorch's are cut off before it


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_means_of_float16s_two_largest_numbers_are_these_numbers(choice: Choice) -> None:
    qkv = torch.full((1, 300, 3 * 32), 65504.0, dtype=torch.float16, device=DEVICE)
    qkv[..., -16:] = 65472.0
    out = linear_attention(qkv, None, 32, EPS, choice)
    # the second largest shows that the limit hides no error: one of 16 would make it one of its neighbours
    assert (out[..., :16] == 65504.0).all() and (out[..., 16:] == 65472.0).all()


def test_a_second_run_gives_the_same_bits() -> None:
    case = Case((1, 70, 1, 16), torch.float32, norm=True)
    assert all(torch.equal(a, b) for a, b in zip(case.computed("triton"), case.computed("triton"), strict=True))


def test_a_picture_has_the_bits_that_it_has_alone() -> None:
    case = Case((2, 19, 2, 16), torch.float32, norm=True)
    out, dqkv = case.computed("triton")[:2]
    case.qkv, case.gradient = case.qkv[1:], case.gradient[1:]
    alone = case.computed("triton")
    assert torch.equal(out[1:], alone[0])
    assert torch.equal(dqkv[1:], alone[1])


def test_strides_of_arguments_and_of_the_gradient_change_nothing() -> None:
    case = Case((2, 3, 2, 16), torch.float32, norm=True)
    expected = case.computed("triton")
    case.qkv = case.qkv.transpose(0, 1).contiguous().transpose(0, 1)
    case.gradient = case.gradient.transpose(1, 2).contiguous().transpose(1, 2)
    assert not case.qkv.is_contiguous() and not case.gradient.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(case.computed("triton"), expected, strict=True))


def test_strided_weights_of_the_norm_are_read_as_what_they_are() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 5, 96, device=DEVICE)
    strided, expanded = torch.rand(64, device=DEVICE)[::2], torch.rand(1, device=DEVICE).expand(32)
    expected = linear_attention(qkv, (strided, expanded), 16, EPS, "reference")
    torch.testing.assert_close(linear_attention(qkv, (strided, expanded), 16, EPS, "triton"), expected)


@pytest.mark.parametrize("choice", ["triton", "reference"])
@pytest.mark.parametrize(
    ("channels", "head_dim", "norm", "says"),
    [(96, 16, 31, r"a norm of \(31,\)"), (120, 32, 40, "heads of 32"), (194, 16, 64, "194 channels")],
)
def test_shapes_that_do_not_fit_are_refused_in_words(
    channels: int, head_dim: int, norm: int, says: str, choice: Choice
) -> None:
    weights = torch.ones(norm, device=DEVICE), torch.ones(norm, device=DEVICE)
    with pytest.raises(ValueError, match=says):
        linear_attention(torch.randn(1, 5, channels, device=DEVICE), weights, head_dim, EPS, choice)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_autocast_changes_nothing(choice: Choice) -> None:
    case = Case((2, 3, 2, 16), torch.float32, norm=True)
    expected = case.computed(choice)[0]
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(case.computed(choice)[0], expected)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_a_nan_is_not_hidden(choice: Choice) -> None:
    case = Case((2, 5, 2, 16), torch.float32, norm=False)
    case.qkv[0, 3, 0] = float("nan")  # a query of the first head
    out = case.computed(choice)[0]
    assert out[0, 3, :16].isnan().all()
    assert out.isnan().sum() == 16


def test_a_second_derivative_is_refused() -> None:
    qkv = torch.randn(1, 3, 48, device=DEVICE, requires_grad=True)
    out = linear_attention(qkv, None, 16, EPS, "triton")
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("head_dim", "dtype", "says"),
    [(24, torch.float32, "24 channels"), (16, torch.float64, "no kernel for torch.float64")],
)
def test_what_the_kernels_cannot_take_goes_to_the_reference_or_is_refused(
    head_dim: int, dtype: torch.dtype, says: str
) -> None:
    qkv = torch.randn(1, 3, 3 * 2 * head_dim, dtype=dtype, device=DEVICE)
    out = linear_attention(qkv, None, head_dim, EPS, "auto")
    assert torch.equal(out, linear_attention(qkv, None, head_dim, EPS, "reference"))
    with pytest.raises(ValueError, match=says):
        linear_attention(qkv, None, head_dim, EPS, "triton")

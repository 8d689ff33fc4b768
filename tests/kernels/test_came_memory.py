"""Memory of CAME-8bit: state by kind of layer, and state with scratch on the shapes of SANA-1.5's 4.8B."""

from dataclasses import replace
from math import prod

import pytest
import torch

from kernels.came8bit import Came8bit
from kernels.came8bit.state import initial_state
from kernels.optimizers import state_bytes_by_kind, state_bytes_per_parameter
from model.network import NetworkConfig, Sana
from tests.kernels.peak_memory import peak_bytes

PUBLISHED = NetworkConfig(
    in_channels=32,
    hidden_size=2240,
    depth=60,
    linear_head_dim=32,
    cross_heads=20,
    mlp_ratio=2.5,
    patch_size=1,
    caption_channels=2304,
    qk_norm=True,
    numerics="nvlabs",
)


def published_parameters(depth: int, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Parameters of the published width with gradients, without data."""
    with torch.device("meta"):
        parameters = list(Sana(replace(PUBLISHED, depth=depth)).to(dtype).parameters())
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    return parameters


def test_peak_counts_what_lives_at_once_and_no_views() -> None:
    def work() -> None:
        first = torch.ones(1000, device="meta")
        second = first.view(10, 100)[2:] * 2
        del first
        (second + 1).add_(1)

    assert peak_bytes(work) == 4 * (1000 + 800)


@pytest.mark.parametrize(("dtype", "map"), [(torch.float32, "dynamic"), (torch.bfloat16, "linear")], ids=str)
def test_state_and_scratch_are_at_most_1_1_bytes_for_a_parameter_of_the_4_8b(dtype: torch.dtype, map: str) -> None:
    # scratch is of one large parameter, or of one batch of small ones, at a time: one block shows all there are
    few = Came8bit(published_parameters(1, dtype), lr=1e-4, map=map)
    # all the tensors that a first step makes: the state stays, the rest is scratch
    peak = peak_bytes(few.step)
    scratch = peak - state_bytes_per_parameter(few) * sum(parameter.numel() for parameter in few.state)
    parameters = published_parameters(60, dtype)
    count = sum(parameter.numel() for parameter in parameters)
    assert count == 4_721_825_952
    state = sum(tensor.nbytes for parameter in parameters for tensor in initial_state(parameter, map).values())
    print(f"state {state / count:.4f}, scratch {scratch / count:.4f} bytes a parameter")
    assert state / count < 1.03
    assert scratch > 0 and (state + scratch) / count <= 1.1


def test_stochastic_rounding_takes_no_more_memory() -> None:
    peaks = []
    for stochastic in (False, True):
        parameter = torch.nn.Parameter(torch.empty(2240, 2240, dtype=torch.bfloat16, device="meta"))
        parameter.grad = torch.empty_like(parameter)
        optimizer = Came8bit([parameter], lr=1e-4, stochastic_rounding=stochastic)
        peaks.append(peak_bytes(optimizer.step))
    assert peaks[0] == peaks[1]


def test_state_by_kind_of_layer_is_what_its_shapes_say() -> None:
    shapes = {
        "matrix": (640, 512),
        "1x1 convolution": (512, 640, 1, 1),
        "depth-wise convolution": (640, 1, 3, 3),
        "vector": (640,),
        "other": (8, 4, 3, 3),
    }
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes.values()]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = Came8bit(parameters, lr=1e-3)
    optimizer.step()
    # codes, scale and minimum of each block, rows and columns of two statistics; else momentum and square
    packed = 1 + (8 * 160 + 8 * (640 + 512)) / prod(shapes["matrix"])
    expected = dict.fromkeys(shapes, 8.0) | {"matrix": packed, "1x1 convolution": packed}
    assert state_bytes_by_kind(optimizer) == pytest.approx(expected)

"""What the plan says of a rank's gradients and gathered weights is what FSDP2 holds, in processes over gloo."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode

from model.network import NetworkConfig, Sana
from tasks.computing.precision import autocast
from tasks.planning.training_memory import gathered_bytes, sharded_gradient_bytes
from tasks.training.fsdp_sharding import local, shard, sum_over_ranks
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch
from tests.kernels.processes import run_processes

SHARDS, DEPTH = 2, 5
FORMATS = [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
"""Of weights and of products."""
CONFIG = NetworkConfig(4, 64, DEPTH, 8, 2, 2.0, 1, 8, True, "diffusers")  # 2 ranks divide the rows of every parameter
BATCH = NoisedBatch(
    *torch.randn(2, 3, 4, 4, 4), torch.linspace(0.1, 0.9, 3), torch.randn(3, 7, 8), torch.ones(3, 7, dtype=torch.bool)
)


def sharded_loss(weights: str, dtype: str, replicas: int = 1) -> nn.Module:
    network = Sana(CONFIG).to(getattr(torch, weights))
    loss = FlowMatchingLoss(network)
    shard(network, loss, "cpu", dtype, replicas)
    return loss


def groups_of(loss: nn.Module) -> Iterator[Any]:
    """FSDP2's own records of each unit. Gradients that wait for their sum, and gathered weights, are nowhere else."""
    for module in loss.modules():
        if isinstance(module, FSDPModule):
            yield module._get_fsdp_state()._fsdp_param_group


def bytes_held(tensors: Iterator[Tensor | None]) -> int:
    """The bytes of all storages of these tensors."""
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors if one is not None}
    return sum(storages.values())


def gradients(loss: nn.Module) -> Iterator[Tensor | None]:
    for group in groups_of(loss):
        yield group._partial_reduce_output
        for one in group.fsdp_params:
            yield one.unsharded_accumulated_grad
            yield one._unsharded_param.grad
    yield from (None if one.grad is None else local(one.grad) for one in loss.parameters())


def check_gradients(_folder: Path, replicas: int) -> None:
    for weights, dtype in FORMATS:
        loss = sharded_loss(weights, dtype, replicas)
        for passes in (1, 3):
            held = []
            for number in range(passes):
                sum_over_ranks(loss, last=number == passes - 1)
                with autocast("cpu", dtype):
                    value = loss(BATCH).mean()
                value.backward()
                held.append(bytes_held(gradients(loss)))
            wanted = sharded_gradient_bytes(CONFIG, weights, SHARDS, replicas, passes)
            assert max(held) == wanted, (weights, dtype, passes, held, wanted)
            loss.zero_grad(set_to_none=True)


@pytest.mark.parametrize("replicas", [1, 2], ids=["fully_shard", "hybrid_shard"])
def test_a_rank_holds_the_gradients_that_the_plan_says_with_one_micro_batch_and_several(
    tmp_path: Path, replicas: int
) -> None:
    job = partial(check_gradients, replicas=replicas)
    job.__name__ = check_gradients.__name__  # by which the processes find each other
    run_processes(SHARDS * replicas, tmp_path, job)


class GatheredWeights(TorchDispatchMode):
    """Notes the most bytes of gathered weights that are held at any operation of a pass."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.most = loss, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.most = max(self.most, bytes_held(self._gathered()))
        return function(*args, **(kwargs or {}))

    def _gathered(self) -> Iterator[Tensor | None]:
        for group in groups_of(self.loss):
            on_its_way = group._all_gather_result
            yield None if on_its_way is None else on_its_way.all_gather_output
            for one in group.fsdp_params:
                yield getattr(one, "_unsharded_param", None)


def check_gathered(_folder: Path) -> None:
    for weights, dtype in FORMATS:
        loss = sharded_loss(weights, dtype)
        for _ in range(2):  # the first pass also makes FSDP2's records
            with GatheredWeights(loss) as forward, autocast("cpu", dtype):
                value = loss(BATCH).mean()
            with GatheredWeights(loss) as backward:
                value.backward()
        found = forward.most, backward.most
        assert found == (gathered_bytes(CONFIG, dtype),) * 2, (weights, dtype, gathered_bytes(CONFIG, "float32"))


def test_a_rank_holds_the_gathered_weights_that_the_plan_says(tmp_path: Path) -> None:
    run_processes(SHARDS, tmp_path, check_gathered)

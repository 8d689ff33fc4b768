"""What sharded training sends between ranks and holds in memory, counted and compared with arithmetic."""

import ctypes
import gc
import os
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from model.checkpoint import WEIGHTS, load_network, load_shapes, save_network
from model.network import NetworkConfig, Sana
from tasks.computing import ranks
from tasks.computing.precision import autocast
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.fsdp_sharding import gathered, is_sharded, load_rows, local, shard
from tasks.training.initial_network import initial_network
from tasks.training.training_batch import FlowMatchingLoss, NoisedBatch
from tasks.training.training_loop import Trainer
from tests.helpers.small_workspace import write_encoded, write_params
from tests.kernels.processes import run_processes

DEPTH, RANKS = 2, 4
# Widths that 4 ranks do not divide, so that shards are padded, and of which none is a number of tokens or samples.
CONFIG = NetworkConfig(3, 66, DEPTH, 11, 6, 2.0, 1, 6, True, "diffusers")
GATHER, SCATTER, REDUCE = "_allgather_base_", "_reduce_scatter_base_", "allreduce_"


class Collectives(TorchDispatchMode):
    """Counts torch.distributed's collectives and their bytes: of the whole tensor, which each rank gets or sends.

    torch's own `CommDebugMode` counts the same operators, without bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a collective, and let it run."""
        name = function._schema.name
        if name.startswith("c10d::"):
            name = name.removeprefix("c10d::")
            place = 1 if name == SCATTER else 0  # the input of a scatter, the output of a gather
            tensors = args[place] if isinstance(args[place], list) else [args[place]]
            self.calls[name] += 1
            self.bytes[name] += sum(one.nbytes for one in tensors if isinstance(one, Tensor))
        return function(*args, **(kwargs or {}))


def padded(network: Sana, shards: int) -> int:
    """The entries of all parameters, with the rows that `fully_shard` adds so that `shards` divides them."""
    return sum(-(-len(one) // shards) * shards * one[0].numel() for one in network.parameters())


def expected(parallelism: str, parts: int, network: Sana) -> dict[str, tuple[int, int]]:
    """Calls and bytes of each collective in a step of `parts` micro-batches on 4 ranks, in bfloat16."""
    entries = sum(one.numel() for one in network.parameters())
    if parallelism == "ddp":
        return {REDUCE: (1, 4 * entries)}  # one bucket, since the network is below a MiB
    units = DEPTH + 1  # the blocks, and the rest
    whole = padded(network, 4 if parallelism == "fully_shard" else 2)
    gathers = {GATHER: (2 * units * parts, 2 * 2 * whole * parts)}  # for each forward and each backward pass, 2 bytes
    if parallelism == "fully_shard":
        return gathers | {SCATTER: (units, 4 * whole)}
    # each pair of neighbours sums at each pass, and the pairs once a step, of which a rank has half of the rows
    return gathers | {SCATTER: (units * parts, 4 * whole * parts), REDUCE: (units, 4 * whole // 2)}


def as_torchrun() -> None:
    """Set what accelerate reads, as torchrun would."""
    number, count = str(ranks.rank()), str(ranks.world_size())
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}


def count_collectives(folder: Path) -> None:
    params = load_params(folder / PARAMS_FILE)
    as_torchrun()
    for parallelism in ("ddp", "fully_shard", "hybrid_shard"):
        for parts in (1, 4):
            compute = replace(params.compute, parallelism=parallelism, nodes=2, processes_per_node=2)
            training = replace(params.pretrain, grad_accumulation=parts)
            torch.manual_seed(0)
            network = Sana(CONFIG)
            wanted = expected(parallelism, parts, network)
            with closing(open_spool(folder / f"spool-{ranks.rank()}", "pretrain", tags={})) as spool:
                state = folder / f"{parallelism}-{parts}"
                context = Context("pretrain", replace(params, compute=compute), state, state, Tracker(spool), "cpu", 1)
                trainer = Trainer(context, network, folder / paths.ENCODED, training)
            trainer.update()  # DDP arranges its buckets in the first step
            with Collectives() as counted:
                trainer.update()
            found = {name: (counted.calls[name], counted.bytes[name]) for name in (GATHER, SCATTER, REDUCE)}
            assert {name: one for name, one in found.items() if one[0]} == wanted, (parallelism, parts)
            AcceleratorState._reset_state(reset_partial_state=True)


def test_collectives_and_their_bytes_in_a_step_are_those_of_arithmetic(tmp_path: Path) -> None:
    write_encoded(tmp_path, train=37)
    adamw = {"pretrain.optimizer": "adamw", "pretrain.batch_size": 16, "pretrain.bias_correction": False}
    write_params(tmp_path, adamw | {"compute.dtype": "bfloat16", "compute.device": "cpu"})
    run_processes(RANKS, tmp_path, count_collectives)


def a_batch() -> NoisedBatch:
    random = torch.Generator().manual_seed(ranks.rank())
    latents, noise = (torch.randn((5, 3, 4, 4), generator=random) for _ in range(2))
    return NoisedBatch(
        latents, noise, torch.linspace(0.1, 0.9, 5), torch.randn((5, 7, 6), generator=random), torch.ones(5, 7).bool()
    )


def whole_weights_kept(dtype: str) -> list[tuple[int, ...]]:
    """Shapes of weights of which autograd keeps all rows from the forward pass on; vectors are left out."""
    torch.manual_seed(0)
    network = Sana(CONFIG)
    shapes = {shape for one in network.parameters() if one.dim() > 1 for shape in forms(one)}
    loss = FlowMatchingLoss(network)
    shard(network, loss, "cpu", dtype)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        with autocast("cpu", "bfloat16"):
            value = loss(a_batch()).mean()
    # the storage of a gathered weight is empty again behind its unit
    kept = [tuple(one.shape) for one in saved if tuple(one.shape) in shapes and one.untyped_storage().size()]
    value.backward()
    return kept


def forms(weight: Tensor) -> list[tuple[int, ...]]:
    """The shapes in which products take a weight: as it is, as a matrix, and transposed."""
    matrix = weight.flatten(1)
    return [tuple(weight.shape), tuple(matrix.shape), tuple(matrix.T.shape)]


def check_saved(folder: Path) -> None:
    assert whole_weights_kept("bfloat16") == []
    # Autocast alone would keep a copy of each matrix, and of each depth-wise kernel: the walk would see it.
    assert len(whole_weights_kept("float32")) > 8 * DEPTH


def test_no_whole_weight_outlives_the_forward_pass_of_shards_in_bfloat16(tmp_path: Path) -> None:
    run_processes(2, tmp_path, check_saved)


def check_start(folder: Path) -> None:
    for dtype, weights in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for replicas in (1, 2):
            read, cut = load_shapes(folder).to(weights), load_network(folder).to(weights)
            values = []
            for network in (read, cut):
                loss = FlowMatchingLoss(network)
                shard(network, loss, "cpu", dtype, replicas)
                if network is read:
                    load_rows(network, folder, "cpu")
                held = {name: local(one).clone() for name, one in network.named_parameters()}
                with autocast("cpu", dtype):
                    value = loss(a_batch()).mean()
                value.backward()
                values.append((held, value, [gathered(one.grad) for one in network.parameters()]))
            (ours, our_loss, our_gradients), (theirs, their_loss, their_gradients) = values
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
            assert torch.equal(our_loss, their_loss)
            assert all(map(torch.equal, our_gradients, their_gradients))


def test_rows_read_from_a_checkpoint_are_the_bits_of_a_network_that_is_loaded_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_network(Sana(CONFIG), tmp_path)
    run_processes(RANKS, tmp_path, check_start)


WIDE = NetworkConfig(4, 512, 8, 32, 8, 2.5, 1, 64, True, "diffusers")


def peak_bytes() -> int:
    """The most memory that this process has had since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def reset_peak() -> int:
    """Let the peak begin at the present memory, which is returned.

    Memory that was freed is given back first: what follows could use it without a higher peak.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def start(folder: Path) -> Sana:
    network = load_shapes(folder)
    shard(network, FlowMatchingLoss(network), "cpu", "bfloat16")
    load_rows(network, folder, "cpu")
    return network


def check_memory(folder: Path) -> None:
    start(folder / "small")  # imports what sharding needs
    before = reset_peak()
    network = start(folder / "wide")
    taken = peak_bytes() - before
    rows = sum(local(one).nbytes for one in network.parameters())
    assert all(map(is_sharded, network.parameters())) and rows < 1.01 * parameter_bytes(network) / RANKS
    assert rows < taken < 1.2 * rows, f"{taken} bytes for {rows} bytes of rows"


def parameter_bytes(network: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in network.parameters())


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak of memory that can be reset")
def test_a_rank_starts_in_at_most_1_2_times_the_memory_of_its_rows(tmp_path: Path) -> None:
    for name, config in (("small", CONFIG), ("wide", WIDE)):
        (tmp_path / name).mkdir()
        save_network(Sana(config), tmp_path / name)
    run_processes(RANKS, tmp_path, check_memory)


def test_a_checkpoint_that_does_not_fit_is_refused_before_its_rows_are_read(tmp_path: Path) -> None:
    network = Sana(CONFIG)
    save_network(network, tmp_path)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    tensors["other"] = tensors.pop("final_layer.linear.bias")
    save_file(tensors, tmp_path / WEIGHTS)
    for load in (load_network, load_shapes):
        with pytest.raises(ValueError, match=r"does not fit the network: final_layer\.linear\.bias, other in one of"):
            load(tmp_path)


def start_from_random_weights(folder: Path) -> None:
    params = load_params(folder / PARAMS_FILE)
    params = replace(params, compute=replace(params.compute, parallelism="fully_shard"))
    made = []

    def make() -> Sana:
        made.append(ranks.rank())
        torch.manual_seed(0)
        return Sana(CONFIG)

    with closing(open_spool(folder / f"spool-{ranks.rank()}", "pretrain", tags={})) as spool:
        context = Context("pretrain", params, folder, folder / "state", Tracker(spool), "cpu", 1)
        with initial_network(context, make) as start:
            assert isinstance(start, Path)
            network = load_shapes(start)
            shard(network, FlowMatchingLoss(network), "cpu")
            load_rows(network, start, "cpu")
    assert ranks.gather(made) == [[0], [], [], []] and not list((folder / "state").iterdir())
    expected = make().state_dict()
    assert all(torch.equal(gathered(one), expected[name]) for name, one in network.state_dict().items())


def test_one_rank_makes_the_random_weights_and_the_others_read_their_rows(tmp_path: Path) -> None:
    write_params(tmp_path, {})
    run_processes(RANKS, tmp_path, start_from_random_weights)

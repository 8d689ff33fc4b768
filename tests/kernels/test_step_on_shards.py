"""CAME over several processes: FSDP2's shards and DDP against one process, collectives counted, checkpoints moved."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.came8bit import Came, Came8bit, step_on_shards, step_on_shards_in_triton
from kernels.came8bit.correction import joined
from tests.kernels.processes import run_processes

# rows that 2 and 3 do not divide, blocks that straddle shards, shards without rows, all kinds of layers; the last two
# are read 16 bytes at a time by Triton's kernels, with rows that 2 and 3 do not divide, and with entries that they do
SHAPES = [
    *((131, 127), (150, 113, 1, 1), (24, 40), (1, 40), (2, 9000), (3,), (1,), (7, 1, 3, 3), (40,)),
    *((131, 128), (96,)),
]
OPTIMIZERS: dict[str, tuple[type[Came], dict[str, Any]]] = {
    "came": (Came, {}),
    "linear": (Came8bit, {"map": "linear"}),
    "dynamic": (Came8bit, {"map": "dynamic"}),
    "stochastic": (Came8bit, {"stochastic_rounding": True}),
    "corrected": (Came8bit, {"bias_correction": True}),
    "8 bits more": (Came8bit, {"correction": True}),
}
STEPS = 4
# The interpreter is slow, so each number of processes steps some kinds in Triton, and takes the last two steps.
KINDS_IN_TRITON = {1: ("linear",), 2: ("came", "dynamic"), 3: ("linear", "stochastic", "corrected")}


class Network(nn.Module):
    """Parameters of all shapes, as many of each as there are blocks, which no forward pass uses."""

    def __init__(self, dtype: torch.dtype = torch.float32, blocks: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for index, shape in enumerate(SHAPES * blocks):
            self.register_parameter(f"p{index}", nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))


def build(kind: str, shard: bool, blocks: int = 1) -> tuple[Network, Came]:
    """The network, sharded over all processes or whole, and its optimizer."""
    network = Network(torch.bfloat16 if kind in ("stochastic", "8 bits more") else torch.float32, blocks)
    if shard:
        fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer, options = OPTIMIZERS[kind]
    return network, optimizer(network.parameters(), lr=1e-3, weight_decay=0.1, **options)


def set_gradients(network: nn.Module, step: int) -> None:
    """Gradients that depend on the step alone, whose scale differs by rows."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        rows = torch.rand((parameter.shape[0],) + (1,) * (parameter.dim() - 1), generator=generator)
        gradient = (noise * rows * (10.0 if step % 4 == 3 else 0.01)).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = gradient


def train(network: nn.Module, optimizer: Came, steps: range) -> None:
    """Step once for each of `steps`."""
    for step in steps:
        set_gradients(network, step)
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def contents(network: nn.Module, optimizer: Came) -> list[dict[str, Tensor]]:
    """Each parameter with its state, whole."""
    return [
        {"parameter": whole(parameter)} | {name: whole(tensor) for name, tensor in optimizer.state[parameter].items()}
        for parameter in network.parameters()
    ]


def save_checkpoint(network: nn.Module, optimizer: Came, folder: Path) -> None:
    """By torch.distributed.checkpoint, each process its rows."""
    model, state = get_state_dict(network, optimizer)
    dcp.save({"model": model, "optimizer": state}, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load_checkpoint(network: nn.Module, optimizer: Came, folder: Path) -> None:
    """What `save_checkpoint` wrote, from any number of processes."""
    model, state = get_state_dict(network, optimizer)
    dcp.load({"model": model, "optimizer": state}, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_state_dict(
        network, optimizer, model_state_dict=model, optim_state_dict=state, options=StateDictOptions(strict=True)
    )


def train_sharded(folder: Path) -> None:
    """Every kind of optimizer: train, save, count collectives, train on."""
    for kind in OPTIMIZERS:
        network, optimizer = build(kind, shard=True)
        train(network, optimizer, range(STEPS - 1))
        save_checkpoint(network, optimizer, folder / f"checkpoint-{kind}")
        saved = contents(network, optimizer)
        again, loaded = build(kind, shard=True)
        load_checkpoint(again, loaded, folder / f"checkpoint-{kind}")
        reloaded = contents(again, loaded)
        set_gradients(network, STEPS - 1)
        with CommDebugMode() as communication:
            optimizer.step()
        train(again, loaded, range(STEPS - 1, STEPS))
        results = {
            "saved": saved,
            "reloaded": reloaded,
            "ended": contents(network, optimizer),
            "reloaded and ended": contents(again, loaded),
            "collectives": {str(name): count for name, count in communication.get_comm_counts().items()},
            "local": sum(tensor.to_local().numel() for tensor in network.parameters()),
        }
        if dist.get_rank() == 0:
            torch.save(results, folder / f"{kind}.pt")


def load_sharded(folder: Path) -> None:
    """Load the checkpoints of two processes on as many as these are."""
    for kind in OPTIMIZERS:
        network, optimizer = build(kind, shard=True)
        load_checkpoint(network, optimizer, folder / f"checkpoint-{kind}")
        loaded = contents(network, optimizer)
        train(network, optimizer, range(STEPS - 1, STEPS))
        ended = contents(network, optimizer)
        if dist.get_rank() == 0:
            torch.save({"loaded": loaded, "ended": ended}, folder / f"{kind}-3.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    run_processes(2, folder, train_sharded)
    return folder


@pytest.fixture(scope="module")
def three(two: Path) -> Path:
    """The same folder, after three processes have loaded what two saved."""
    run_processes(3, two, load_sharded)
    return two


def load(path: Path) -> dict[str, Any]:
    """Results of processes."""
    return torch.load(path, weights_only=True)


def assert_near(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]], kind: str) -> None:
    """Codes at most a level apart in 0.1 % of places; float32 to 1e-6 of the largest.

    Where a code was a level apart at an earlier step, the parameter is apart by more: 0.1 % of places for each step.
    """
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        packed = "momentum_codes" in one
        for name in one:
            shape = tuple(one[name].shape)
            if one[name].dtype == torch.uint8:
                difference = (one[name].int() - other[name].int()).abs()
                assert difference.max() <= 1 and (difference > 0).sum() <= difference.numel() / 1000, shape
            elif name == "correction":
                held, expected = (joined(each["parameter"], each[name]) for each in (one, other))
                # A number beside a rounding boundary may go to the other side, in as many places as codes do.
                difference = (held - expected).abs() / expected.abs().max()
                assert (difference > 0).sum() <= max(1, difference.numel() * STEPS / 1000), (kind, shape)
                assert difference.max() < 1e-3, (kind, shape)
            elif one[name].dtype == torch.bfloat16:
                assert (one[name] != other[name]).sum() <= max(1, one[name].numel() // 200), shape
            else:
                difference = (one[name] - other[name]).abs() / other[name].abs().max()
                apart = one[name].numel() * STEPS / 1000 if packed and name == "parameter" else 0
                allowed = 1e-4 if packed and name != "parameter" else 1e-6
                assert (difference > allowed).sum() <= apart, (kind, name, shape, difference.max())
                assert difference.max() < 1e-3, (kind, name, shape)


def same_bits(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> bool:
    """Whether two contents are equal."""
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_two_processes_equal_one(two: Path, kind: str) -> None:
    network, optimizer = build(kind, shard=False)
    train(network, optimizer, range(STEPS))
    assert_near(load(two / f"{kind}.pt")["ended"], contents(network, optimizer), kind)


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_a_step_has_four_collectives_and_none_gathers(two: Path, kind: str) -> None:
    results = load(two / f"{kind}.pt")
    expected = 3 if kind == "came" else 4  # without blocks, none have extremes
    assert sum(results["collectives"].values()) == expected
    assert all("all_reduce" in name or "allreduce" in name for name in results["collectives"])


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_a_checkpoint_of_two_loads_bit_for_bit_on_two(two: Path, kind: str) -> None:
    results = load(two / f"{kind}.pt")
    assert same_bits(results["saved"], results["reloaded"])
    assert same_bits(results["ended"], results["reloaded and ended"])


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_a_checkpoint_of_two_loads_bit_for_bit_on_one(two: Path, kind: str) -> None:
    network, optimizer = build(kind, shard=False)
    load_checkpoint(network, optimizer, two / f"checkpoint-{kind}")
    results = load(two / f"{kind}.pt")
    assert same_bits(contents(network, optimizer), results["saved"])
    train(network, optimizer, range(STEPS - 1, STEPS))
    assert_near(contents(network, optimizer), results["ended"], kind)


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_a_checkpoint_of_two_loads_bit_for_bit_on_three(three: Path, kind: str) -> None:
    expected, found = load(three / f"{kind}.pt"), load(three / f"{kind}-3.pt")
    assert same_bits(found["loaded"], expected["saved"])
    assert_near(found["ended"], expected["ended"], kind)


class Operators(TorchDispatchMode):
    """How often each operator is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def check_depth(folder: Path) -> None:
    """Blocks that step together, against the same blocks that step one after the other; operators are counted."""
    for kind in OPTIMIZERS:
        counts, ended = {}, {}
        for blocks in (2, 6):
            network, optimizer = build(kind, shard=True, blocks=blocks)
            train(network, optimizer, range(STEPS - 1))  # the first step makes the state
            set_gradients(network, STEPS - 1)
            with CommDebugMode() as communication, Operators() as operators:
                optimizer.step()
            counts[blocks] = dict(operators.counts), sum(communication.get_comm_counts().values())
            ended[blocks] = contents(network, optimizer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step_on_shards, "ENTRIES", 1)
            network, optimizer = build(kind, shard=True, blocks=6)
            train(network, optimizer, range(STEPS))
        assert counts[2] == counts[6], kind
        assert sum(counts[6][0].values()) > 100
        assert_near(ended[6], contents(network, optimizer), kind)


def test_operators_and_collectives_of_a_step_do_not_grow_with_depth(tmp_path: Path) -> None:
    run_processes(2, tmp_path, check_depth)


def check_triton(_: Path) -> None:
    """Rows that step by Triton's kernels, in its interpreter, against rows in PyTorch and a whole network in Triton."""
    for kind in KINDS_IN_TRITON[dist.get_world_size()]:
        network, optimizer = build(kind, shard=True)
        optimizer.kernels = "triton"
        train(network, optimizer, range(STEPS - 2, STEPS - 1))
        set_gradients(network, STEPS - 1)
        with CommDebugMode() as communication:
            optimizer.step()
        ended = contents(network, optimizer)
        assert sum(communication.get_comm_counts().values()) == (3 if kind == "came" else 4), kind
        check_found_inf(network, optimizer, kind)
        network, optimizer = build(kind, shard=True)
        optimizer.kernels = "reference"
        train(network, optimizer, range(STEPS - 2, STEPS))
        assert_near(ended, contents(network, optimizer), kind)
        if dist.get_rank() == 0:
            network, optimizer = build(kind, shard=False)
            optimizer.kernels = "triton"
            train(network, optimizer, range(STEPS - 2, STEPS))
            assert_near(ended, contents(network, optimizer), kind)


def check_found_inf(network: Network, optimizer: Came, kind: str) -> None:
    """Gradients of NaN change no bit of parameters and states while the flag is 1."""
    before = contents(network, optimizer)
    optimizer.found_inf = torch.ones(())
    for parameter in network.parameters():
        parameter.grad = parameter.grad * math.nan
    optimizer.step()
    assert same_bits(contents(network, optimizer), before), kind


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("count", list(KINDS_IN_TRITON))
def test_rows_in_triton_equal_rows_in_pytorch_and_one_process_and_obey_found_inf(tmp_path: Path, count: int) -> None:
    run_processes(count, tmp_path, check_triton)


def check_launches(_: Path) -> None:
    """Launches, collectives and torch's operators of one step by Triton's kernels, with 4 and with 16 equal blocks."""
    counts = []
    for blocks in (4, 16):
        parameters = [nn.Parameter(torch.ones(shape)) for shape in [(1030, 16), (5, 8), (9,)] * blocks]
        network = nn.ParameterList(parameters)
        fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
        optimizer = Came8bit(network.parameters(), lr=1e-3, kernels="triton")
        set_gradients(network, 0)
        with pytest.MonkeyPatch.context() as patch:
            launched = count_launches(patch)
            optimizer.step()  # the first step makes the state
            launched.clear()
            with CommDebugMode() as communication, Operators() as operators:
                optimizer.step()
        collectives = sum(communication.get_comm_counts().values())
        counts.append((launched, collectives, operators.counts))
    assert counts[0] == counts[1]
    assert counts[0][1] == 4
    # Rows of 16 columns are read 16 bytes at a time, and rows of 8 are not.
    assert counts[0][0]["apply_kernel"] == counts[0][0]["bounds_kernel"] == 2


def count_launches(patch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of CAME's kernels is launched from now on. They do not run, as the interpreter is slow."""
    launched: Counter[str] = Counter()

    class Counted:
        """A kernel whose launches are counted."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Any:
            def launch(*_: Any, **__: Any) -> None:
                launched[self.name] += 1

            return launch

    for name in [name for name in vars(step_on_shards_in_triton) if name.endswith("_kernel")]:
        patch.setattr(step_on_shards_in_triton, name, Counted(name))
    return launched


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_launches_and_collectives_of_a_step_in_triton_do_not_grow_with_depth(tmp_path: Path) -> None:
    run_processes(2, tmp_path, check_launches)


def check_backward(_: Path) -> None:
    """A network that FSDP2 and DDP run forward and backward, against one that sees all samples."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(30, 601), nn.SiLU(), nn.Linear(601, 5))
    sharded, replicated = (nn.Sequential(nn.Linear(30, 601), nn.SiLU(), nn.Linear(601, 5)) for _ in range(2))
    sharded.load_state_dict(plain.state_dict())
    replicated.load_state_dict(plain.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    optimizers = [Came8bit(network.parameters(), lr=1e-4) for network in (plain, sharded, replicated)]
    networks = [plain, sharded, DistributedDataParallel(replicated)]
    for step in range(3):
        inputs = torch.randn(8, 30, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip(networks, optimizers, strict=True):
            own = inputs if network is plain else inputs.chunk(2)[dist.get_rank()]
            network(own).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, two, three in zip(*(network.parameters() for network in (plain, sharded, replicated)), strict=True):
        for other in (two.full_tensor(), three):
            # gradients are sums in another order, so that codes may differ by a level
            difference = (other - one).abs()
            assert (difference > 1e-5).sum() <= one.numel() / 1000 and difference.max() < 1e-3
        copies = [torch.empty_like(three) for _ in range(2)]
        dist.all_gather(copies, three.detach())
        assert torch.equal(*copies)


def test_fsdp2_and_ddp_train_as_one_process(tmp_path: Path) -> None:
    run_processes(2, tmp_path, check_backward)


def check_refusal(_: Path) -> None:
    """A parameter that is sharded by columns."""
    parameter = nn.Parameter(distribute_tensor(torch.ones(40, 40), init_device_mesh("cpu", (1,)), [Shard(1)]))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="sharded by rows") as caught:
        Came([parameter], lr=1e-3).step()
    assert "\n" not in str(caught.value)


def test_shards_of_columns_are_refused_in_one_line(tmp_path: Path) -> None:
    run_processes(1, tmp_path, check_refusal)

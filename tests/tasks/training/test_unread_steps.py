"""A step of training waits for no number of the device, and an update that is not finite changes nothing."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tasks.computing.seeds import derive
from tasks.data.sample_order import grouped_batch_indices
from tasks.params.params_files import load_params
from tasks.runtime.context import Context
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.tracking.report_spool import open_spool
from tasks.tracking.tracker import Tracker
from tasks.training.training_loop import LOG_EVERY, Trainer
from tests.helpers.small_networks import small_network
from tests.helpers.small_workspace import write_encoded, write_params
from tests.helpers.training_workspace import CHANGES, SAMPLES

OPTIMIZERS = ("came8bit", "came", "adamw8bit", "adamw")
BAD_STEP = 3
READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
"""Methods of a tensor that bring its numbers to the host."""


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_encoded(tmp_path, train=SAMPLES)


@contextmanager
def trainer(name: str = "run", **changes: object) -> Iterator[Trainer]:
    """A training run that begins with the same weights each time; `name` is of its own folder of states."""
    write_params(Path.cwd(), CHANGES | {key.replace("__", "."): value for key, value in changes.items()})
    params = load_params()
    with closing(open_spool(Path("spools", name), "pretrain", tags={})) as spool:
        context = Context("pretrain", params, Path("out"), Path("states", name), Tracker(spool), "cpu", 1)
        yield Trainer(context, small_network(2), paths.ENCODED, params.pretrain)
    AcceleratorState._reset_state(reset_partial_state=True)


def look_on_the_device(trained: Trainer) -> None:
    """Let the optimizer look at the flag, as it does on a GPU; the host does not."""
    trained.found_inf._on_host = False
    trained.optimizer.optimizer.found_inf = trained.found_inf.flag


class Readings(TorchFunctionMode):
    """Counts the calls that bring a number of a tensor to the host, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(function, "__name__", "")) in READING:
            self.calls[name] += 1
        return function(*args, **(kwargs or {}))


class Scalars(TorchDispatchMode):
    """Counts the operation by which torch's own code takes a number out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_host_reads_numbers_once_in_ten_steps(optimizer: str) -> None:
    with trainer(pretrain__optimizer=optimizer) as trained:
        trained.found_inf._on_host = False  # on the CPU the host looks at the flag, which is no wait there
        trained.update()  # DataLoader draws one number when it begins
        with Scalars() as scalars, Readings() as readings:
            while trained.step < 2 * LOG_EVERY:
                trained.update()
                if trained.step % LOG_EVERY == 0:
                    trained.read_steps()
        assert scalars.calls <= 2
        assert readings.calls.total() <= 2
        assert len(trained.history.training) == 2


def test_the_host_reads_numbers_once_in_ten_steps_with_steps_in_the_backward_pass() -> None:
    plain = {"pretrain__clip_norm": None, "pretrain__grad_accumulation": 1, "pretrain__step_in_backward": True}
    with trainer(**plain) as trained:
        trained.found_inf._on_host = False
        trained.update()  # DataLoader draws one number when it begins
        with Scalars() as scalars, Readings() as readings:
            while trained.step < LOG_EVERY:
                trained.update()
            trained.read_steps()
        assert scalars.calls + readings.calls.total() == 1


def with_infinite_loss(loss_of: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """The losses plus infinity, of which the gradient is still finite."""
    return lambda batch: loss_of(batch) + math.inf


def with_broken_gradient(trained: Trainer) -> None:
    weight = trained.network.blocks[1].attn.qkv.weight
    weight.register_hook(lambda gradient: gradient * math.nan)


def all_state(trained: Trainer) -> list[Any]:
    """Copies of parameters, averages, and all that the optimizer's state holds."""
    state = trained.optimizer.optimizer.state_dict()["state"]
    held = tree_leaves([dict(trained.network.named_parameters()), trained.ema.state(), state])
    return copy.deepcopy(held)


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for value, expected in zip(one, other, strict=True):
        assert torch.equal(value, expected) if isinstance(value, Tensor) else value == expected


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_that_is_not_finite_changes_nothing_nor_do_those_after_it(optimizer: str, bad: str) -> None:
    with trainer("good", pretrain__optimizer=optimizer) as trained:
        for _ in range(BAD_STEP):
            trained.update()
        expected = all_state(trained)
    with trainer("bad", pretrain__optimizer=optimizer) as trained:
        for _ in range(BAD_STEP):
            trained.update()
        if bad == "loss":
            trained._loss_of = with_infinite_loss(trained._loss_of)  # type: ignore[method-assign]
        else:
            with_broken_gradient(trained)
        for _ in range(3):
            trained.update()
        assert_same(all_state(trained), expected)


def test_torchs_fused_optimizer_skips_by_the_flag_without_the_host() -> None:
    ends = []
    for steps in (0, 3):
        with trainer(f"{steps}", pretrain__optimizer="adamw", pretrain__ema_decay=0.0) as trained:
            look_on_the_device(trained)
            for _ in range(BAD_STEP):
                trained.update()
            with_broken_gradient(trained)
            for _ in range(steps):
                trained.update()
            ends.append(all_state(trained))
    assert_same(*ends)


def test_a_refused_update_is_named_with_its_step_and_samples() -> None:
    with trainer() as trained:
        for _ in range(BAD_STEP):
            trained.update()
        with_broken_gradient(trained)
        trained.update()
        trained.update()
        with pytest.raises(UserError) as error:
            trained.read_steps()
        said, shapes = str(error.value), trained.dataset.shape_groups
    seed = derive(0, "pretrain", "batches")
    batch = [str(index) for index in grouped_batch_indices(seed, BAD_STEP, CHANGES["pretrain.batch_size"], shapes)]
    assert f"gradient norm nan at step {BAD_STEP} are not both finite: no update was made" in said
    assert f"its 8 samples of encoded: {', '.join(batch)})" in said and "\n" not in said


def test_nothing_is_saved_before_the_flag_is_read() -> None:
    with trainer() as trained:
        with_broken_gradient(trained)
        trained.update()
        with pytest.raises(UserError, match="at step 0 are not both finite"):
            trained.save()
        assert not trained.context.state.exists()


def test_the_history_does_not_depend_on_when_numbers_are_read() -> None:
    histories = []
    for every in (1, 4, 20):
        with trainer(f"{every}") as trained:
            for _ in range(20):
                trained.update()
                if trained.step % every == 0:
                    trained.read_steps()
            histories.append(trained.history)
    assert histories[0].training and histories[0] == histories[1] == histories[2]

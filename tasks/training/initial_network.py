"""A network that does not come from a checkpoint of this project, without a whole copy of it in every rank's memory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.checkpoint import save_network
from model.network import Sana
from tasks.computing import ranks
from tasks.runtime.context import Context
from tasks.training.fsdp_sharding import is_sharded_training

FOLDER = "initial"


@contextmanager
def initial_network(context: Context, make: Callable[[], Sana]) -> Iterator[Sana | Path]:
    """The network that `make` gives, as `Trainer` takes it in the `with` block: itself, or the folder of a checkpoint.

    Where parameters are sharded, rank 0 alone makes the network and writes it below `context.state`, so that each rank
    reads only its rows. The folder is deleted after the block. All ranks must call it, and it raises what `make` does.
    """
    if not is_sharded_training(context.params.compute):
        yield make()
        return
    folder = context.state / FOLDER
    if ranks.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_network(make(), folder)
    ranks.wait_for_all()
    yield folder
    ranks.wait_for_all()
    if ranks.rank() == 0:
        shutil.rmtree(folder)

"""Writes a folder of training states, generation by generation, in a thread, while the training goes on.

A generation is built in a folder beside the others, and renamed into its place when it is whole. Each rank writes its
files and hashes them while it writes. Then it leaves a file `done-N.json` with their digests. Rank 0's thread waits for
these files, writes the manifest and renames the folder. So no thread needs the process group, in which the training
communicates at the same time. If a rank dies, the generation stays unfinished, and the ones before it serve.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.computing import ranks
from tasks.system.errors import UserError
from tasks.system.files import read_json, replace_folder, write_json
from tasks.system.manifest import Entry, write_entries, write_hashed

KEPT_GENERATIONS = 2
"""Generations that are kept: the older one serves if the newest is damaged."""

LOOK_SECONDS = 0.05
"""Seconds between two looks for files of other ranks."""

AFTER_ERROR_SECONDS = 20.0
"""How long a rank that fails waits for the others' files.

torchrun's agent kills the ranks 30 seconds after a failure.
"""

Files = Mapping[str, Sequence[bytes | memoryview]]
"""The bytes of files, by their names."""


class GenerationWriter:
    """Writes one generation after the other; as a context it returns when the last is in its place.

    An error of the thread is raised by the next call of `check`, `begin` or `wait`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.building = folder, folder / "building"
        self.rank, self.world_size = ranks.rank(), ranks.world_size()
        self.target = folder
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.own_files, self.given_up = threading.Event(), threading.Event()

    def begin(self) -> None:
        """Wait for the generation before, and make room for the next. All ranks must call it.

        Raises UserError if a rank could not write the generation before.
        """
        self.wait()
        if self.rank == 0:
            shutil.rmtree(self.building, ignore_errors=True)
            try:
                self.building.mkdir(parents=True)
            except OSError as error:
                raise self._explained(error) from error
        ranks.wait_for_all()

    def start(self, step: int, files: Files, ready: Callable[[], None]) -> None:
        """Begin to write this rank's files of the generation of `step`, whose bytes are there when `ready` returns."""
        self.target = self.folder / f"step-{step:08d}"
        self.own_files.clear()
        self.thread = threading.Thread(target=self._write, args=(files, ready), daemon=True, name="state writer")
        self.thread.start()

    def check(self) -> None:
        """Raise the error of this rank's thread, if it has failed. Other ranks need not call it."""
        if self.error is not None:
            self._give_up()
            raise self.error

    def wait(self) -> None:
        """Return when the generation that was begun last is in its place. All ranks must call it.

        Raises UserError on all ranks if one of them could not write its files.
        """
        if self.thread is None:
            return
        self.own_files.wait()
        self._raise_on_all_ranks()  # a rank that has died is noticed here, as a group is one of the living
        if self.rank == 0:
            self.thread.join()
        self._raise_on_all_ranks()
        self.thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the thread. After an error other ranks may be gone, so none of them is asked for anything then."""
        if kind is None:
            self.wait()
        elif self.thread is not None:
            self._wait_alone()

    def _write(self, files: Files, ready: Callable[[], None]) -> None:
        """What the thread does."""
        try:
            ready()
            entries = write_files(self.building, files)
            if self.rank != 0:
                write_json(done_file(self.building, self.rank), entries)
            self.own_files.set()
            if self.rank == 0 and self._collect(entries):
                publish(self.building, self.target, entries)
        except OSError as error:
            self.error = self._explained(error)
        except Exception as error:
            self.error = error
        finally:
            self.own_files.set()

    def _collect(self, entries: dict[str, Entry]) -> bool:
        """Add the entries of the other ranks' files when they have been written; returns False if they will not be."""
        for rank in range(1, self.world_size):
            path = done_file(self.building, rank)
            while not path.exists():
                if self.given_up.wait(LOOK_SECONDS):
                    return False
            entries |= read_json(path)
            path.unlink()
        return True

    def _raise_on_all_ranks(self) -> None:
        """Raise the error of this rank or, if it has none, that of another rank. This is a collective."""
        said = ranks.gather(None if self.error is None else str(self.error))
        self.check()
        for message in said:
            if message is not None:
                self._give_up()
                raise UserError(message)

    def _wait_alone(self) -> None:
        """Wait for the thread without the other ranks, and name its error, as another error is on its way to the user.

        Rank 0 waits for files of ranks that may be gone, and the others for what rank 0 does with theirs, so on several
        ranks the wait has an end.
        """
        assert self.thread is not None
        until = time.monotonic() + AFTER_ERROR_SECONDS
        while not self._is_settled() and (self.world_size == 1 or time.monotonic() < until):
            time.sleep(LOOK_SECONDS)
        if self.error is not None:
            print(self.error, flush=True)
        self._give_up()

    def _is_settled(self) -> bool:
        """Whether nothing more will happen to the generation that was begun last."""
        assert self.thread is not None
        if self.rank == 0 or self.error is not None:
            return not self.thread.is_alive()
        return self.target.exists()

    def _give_up(self) -> None:
        """Let the thread end, also if another rank's files never come, and wait for it no more."""
        self.given_up.set()
        self.thread = None

    def _explained(self, error: OSError) -> UserError:
        """The one line that a user reads of an error of the disk."""
        place = error.filename or self.building
        return UserError(
            f"{place}: the training state could not be written ({error.strerror or error}): make room or mend the "
            f"disk, and run the same command to resume from the last whole state in {self.folder}"
        )


def write_files(folder: Path, files: Files) -> dict[str, Entry]:
    """Write files into a folder; returns their entries in its manifest. Raises OSError naming the file."""
    entries = {}
    for name, parts in files.items():
        try:
            entries[name] = write_hashed(folder / name, parts)
        except OSError as error:
            error.filename = folder / name  # a failed write does not name its file
            raise
    return entries


def publish(building: Path, target: Path, entries: Mapping[str, Entry]) -> None:
    """Rename a folder of written files to the newest generation, and delete the generations before the newest two."""
    write_entries(building, entries)
    replace_folder(building, target)
    for old in generations(target.parent)[KEPT_GENERATIONS:]:
        shutil.rmtree(old)


def done_file(folder: Path, rank: int) -> Path:
    """The file that says that a rank has written its files."""
    return folder / f"done-{rank:05d}.json"


def generations(folder: Path) -> list[Path]:
    """Finished states, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)

"""A process that has imported what most stages import, and forks itself for each stage, so that a stage starts at once.

Importing torch, transformers and diffusers takes a stage several seconds, and a flow has many stages. Only third-party
modules are kept: a stage's own code is read when the stage starts, as `python -m` would. Used on Linux where no GPU is
in sight; a process whose libraries may have touched one must not fork.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.system.processes import PARENT_VARIABLE

PRELOADED = (
    "tasks.training.training_loop",
    "model.autoencoder",
    "model.text_encoder",
    "scipy.ndimage",
    "torch._dynamo",
)
OURS = ("tasks", "model", "kernels")
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
LONGEST_REQUEST = 65536


def can_fork(device: str) -> bool:
    """Whether stages that compute on `device`, as params.yaml names it, may be forked here."""
    return sys.platform == "linux" and (device == "cpu" or not any(Path(path).exists() for path in GPU_DEVICES))


class Fork:
    """A forked child, to be used as a `subprocess.Popen` is."""

    def __init__(self, pid: int, stdout: int, stderr: int, status: int) -> None:
        self.pid = pid
        self.stdout = open(stdout, encoding="utf-8", errors="replace")
        self.stderr = open(stderr, encoding="utf-8", errors="replace")
        self._status = open(status, "rb")
        self._code: int | None = None
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        with self._lock:
            if self._code is None:
                # nothing, where the process that would tell is gone: then this one ends itself
                self._code = int(self._status.read() or -signal.SIGTERM)
        return self._code

    def terminate(self) -> None:
        """Send TERM, unless it has ended."""
        try:
            self.wait(0)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGTERM)


class ForkServer:
    """The process that forks, begun with the first child; `start` may be called from several threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Fork:
        """Run `python -m <arguments>` in `folder`, with `environment` added to this process's."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._begin()
            pipes = [os.pipe() for _ in range(3)]  # out, error, status
            request = json.dumps({"arguments": [*arguments], "folder": str(folder), "environment": {**environment}})
            socket.send_fds(self._socket, [request.encode()], [write for _, write in pipes])
            for _, write in pipes:
                os.close(write)
            pid = int(self._socket.recv(16) or 0)
        if pid == 0:
            raise RuntimeError(f"python -m {__name__} ended: see above for its reason")
        return Fork(pid, *(read for read, _ in pipes))

    def close(self) -> None:
        """End the process that forks, and with it every child that is left."""
        with self._lock:
            if self._process is not None:
                self._socket.close()  # upon which it ends
                self._process.wait()
                self._process = None

    def _begin(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(other.fileno())],
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )


def preload() -> None:
    """Import what stages import, and forget the project's own modules again."""
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except Exception:  # the stage that needs it will say so
            continue
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    gc.freeze()


def serve(requests: socket.socket) -> list[str]:
    """Fork for each request, and tell its exit code; returns in the child, with its arguments.

    Ends when the flow has: its children see that (`tasks.system.processes.die_with_parent`) and end too.
    """
    children: dict[int, tuple[int, int]] = {}  # by a descriptor that is ready when the child has ended: pid, status
    while True:
        for ready in select.select([requests, *children], [], [])[0]:
            if ready is not requests:
                pid, status = children.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(status, str(code).encode())
                os.close(status)
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, 3)
            if not message:
                sys.exit(0)
            *streams, status = descriptors
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                requests.close()
                for descriptor in (status, *children, *(other for _, other in children.values())):
                    os.close(descriptor)
                return become(json.loads(message), streams, parent)
            for stream in streams:
                os.close(stream)
            children[os.pidfd_open(pid)] = pid, status
            requests.send(str(pid).encode())


def become(request: dict[str, Any], streams: Sequence[int], parent: int) -> list[str]:
    """Make this process the child that was asked for; returns its arguments."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for stream, own in zip(streams, (1, 2), strict=True):
        os.dup2(stream, own)
        os.close(stream)
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    os.environ.update({**request["environment"], PARENT_VARIABLE: str(parent)})
    return request["arguments"]


if __name__ == "__main__":
    # Slurm sends TERM to all processes of a job: this one must tell how its children ended. Threads that libraries
    # start inherit the mask, so it is set before them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    preload()
    _module, *_arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[1:] = _arguments
    runpy.run_module(_module, run_name="__main__", alter_sys=True)

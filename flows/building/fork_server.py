"""A process that has imported the libraries of the stages, and forks itself for each stage, which then starts at once.

Importing torch, transformers and diffusers takes a stage several seconds, and a flow has many stages. The process keeps
third-party modules only. A stage's own code is read when the stage starts, as `python -m` would read it.

It is used on Linux for stages that compute on the CPU. A process whose libraries may have touched a GPU must not fork.
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

PRELOADED_MODULES = (
    "tasks.training.training_loop",
    "model.autoencoder",
    "model.text_encoder",
    "scipy.ndimage",
    "torch._dynamo",
)
"""Importing these modules imports the libraries that stages need."""
PROJECT_PACKAGES = ("tasks", "model", "kernels")
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""The device files by which programs reach GPUs: of NVIDIA's driver, of AMD's, and of Windows below Linux (WSL)."""
MAX_REQUEST_BYTES = 65536


def can_fork(device: str) -> bool:
    """Whether stages that compute on `device`, as params.yaml names it (`auto`, `cpu`, `cuda`), may be forked here."""
    return sys.platform == "linux" and (device == "cpu" or not any(Path(path).exists() for path in GPU_DEVICES))


class ForkedProcess:
    """A child of the fork server, with the parts of `subprocess.Popen` that the flow uses."""

    def __init__(self, pid: int, stdout: int, stderr: int, status: int) -> None:
        self.pid = pid
        self.stdout = open(stdout, encoding="utf-8", errors="replace")
        self.stderr = open(stderr, encoding="utf-8", errors="replace")
        self._status = open(status, "rb")
        self._code: int | None = None
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or the negative number of the signal. Raises subprocess.TimeoutExpired."""
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        with self._lock:
            if self._code is None:
                # The pipe is empty if the fork server is gone. Then the child sees that and ends itself by TERM.
                self._code = int(self._status.read() or -signal.SIGTERM)
        return self._code

    def terminate(self) -> None:
        """Send TERM, unless it has ended."""
        try:
            self.wait(0)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGTERM)


class ForkServer:
    """The flow's side of the process that forks. It starts with the first child.

    `start` may be called from several threads.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> ForkedProcess:
        """Run `python -m <arguments>` in `folder`, with `environment` added to the environment of this process."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start_server()
            pipes = [os.pipe() for _ in range(3)]  # standard output, standard error, exit code
            request = json.dumps({"arguments": [*arguments], "folder": str(folder), "environment": {**environment}})
            socket.send_fds(self._socket, [request.encode()], [write for _, write in pipes])
            # The child has copies of the write ends. A reader sees the end of a pipe only when every copy is closed.
            for _, write in pipes:
                os.close(write)
            pid = int(self._socket.recv(16) or 0)
        if pid == 0:
            raise RuntimeError(f"python -m {__name__} ended: see above for its reason")
        return ForkedProcess(pid, *(read for read, _ in pipes))

    def close(self) -> None:
        """End the process that forks. Children that still run see that and end too."""
        with self._lock:
            if self._process is not None:
                self._socket.close()  # the process reads the end of its requests, and ends
                self._process.wait()
                self._process = None

    def _start_server(self) -> None:
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
    """Import the libraries of the stages, and forget the project's own modules, which may be edited before a fork."""
    for name in PRELOADED_MODULES:
        try:
            importlib.import_module(name)
        except Exception:  # the stage that needs the module will fail with the reason
            continue
    for name in [name for name in sys.modules if name.split(".")[0] in PROJECT_PACKAGES]:
        del sys.modules[name]
    gc.freeze()  # the collector then leaves these objects alone, so that forks go on sharing their memory


def serve(requests: socket.socket) -> list[str]:
    """Fork for each request and report the exit code of each child. Returns in a child only, with its arguments.

    In the server itself this never returns: the process exits when the flow closes its end of `requests`. The children
    then see that their parent is gone (`tasks.system.processes.die_with_parent`) and end too.
    """
    # For each child: a descriptor that can be read when the child has ended, its pid, and the pipe for its exit code.
    children: dict[int, tuple[int, int]] = {}
    while True:
        for ready in select.select([requests, *children], [], [])[0]:
            if ready is not requests:
                pid, status = children.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(status, str(code).encode())
                os.close(status)
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 3)
            if not message:
                sys.exit(0)
            *streams, status = descriptors
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                # A child that kept the pipes of other children open would hide their ends from the flow.
                requests.close()
                for descriptor in (status, *children, *(other for _, other in children.values())):
                    os.close(descriptor)
                return become_child(json.loads(message), streams, parent)
            for stream in streams:
                os.close(stream)
            children[os.pidfd_open(pid)] = pid, status
            requests.send(str(pid).encode())


def become_child(request: dict[str, Any], streams: Sequence[int], parent: int) -> list[str]:
    """Give this forked process the session, streams, folder and environment of the request. Returns its arguments."""
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
    # Slurm sends TERM to all processes of a job. This one must live on until it has reported how its children ended, so
    # it blocks TERM; `become_child` unblocks it. Threads that libraries start inherit the mask, so it is set before the
    # libraries are imported: one thread without it could take the signal and end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # the imports make a million objects that stay; looking through them for garbage takes a third of the imports' time
    gc.set_threshold(50_000)
    preload()
    _module, *_arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[1:] = _arguments
    runpy.run_module(_module, run_name="__main__", alter_sys=True)

"""Another account of this machine, and ports that nobody uses: for tests of who may see and reach what."""

import os
import pwd
import socket
import subprocess
import sys
from typing import Any

from tests.helpers.patience import PATIENCE_SECONDS


def as_another_account(code: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run plain Python as `nobody` in the working directory, where this process may; as itself where it may not.

    It knows nothing of the project but what any account can see, and reads what is `said` on its input.
    """
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    system = "/usr/bin/python3"  # nobody may not be able to enter the folder of this one
    python = system if os.access(system, os.X_OK) else sys.executable
    command = [python, "-I", "-c", code]
    return subprocess.run(
        command, env={}, capture_output=True, text=True, input=said, timeout=PATIENCE_SECONDS, **other
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])

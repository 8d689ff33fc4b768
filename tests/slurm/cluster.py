"""A real Slurm on this machine: two virtual nodes with fake GPUs, on 127.0.0.1, all of it in one folder.

`python tests/slurm/cluster.py up FOLDER` starts it for trying things by hand, `down FOLDER` stops it.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
HINT = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
NODES = ("node1", "node2")
# what slurmd takes for GPUs: it wants character devices, and no two of them alike
DEVICES = ("/dev/null", "/dev/zero")
PATH = f"{os.environ['PATH']}:/usr/sbin"
WAIT_SECONDS = 600.0

CONFIGURATION = """
ClusterName=fake
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MinJobAge=300
KillWait=30
"""


@dataclass(frozen=True)
class SlurmCluster:
    """A cluster in `folder`, on which `gpus` jobs with a GPU run at once on each of its nodes."""

    folder: Path
    gpus: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find it; its daemons lie where only root looks for programs."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Name and state of every job that Slurm remembers, by its id."""
        lines = self.ask("squeue", "-h", "-t", "all", "-o", "%i %j %T").splitlines()
        return {job: (name, state) for job, name, state in (line.split() for line in lines)}

    def up(self) -> None:
        """Start the daemons, and return when both nodes are idle."""
        self._write()
        run, munge = self.folder / "run", self.folder / "munge.key"
        self._start(
            "munged",
            "--force",
            *(f"--key-file={munge}", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid"),
            *(f"--log-file={self.folder}/log/munged.log", f"--seed-file={run}/munge.seed"),
        )
        self._start("slurmctld", "-f", self.environment["SLURM_CONF"], "-c")
        for node in NODES:
            self._start("slurmd", "-f", self.environment["SLURM_CONF"], "-N", node)
        wait_for(lambda: self._idle_nodes() == len(NODES), "both nodes to be idle")

    def down(self) -> None:
        """Cancel all jobs, wait until none is left, and stop the daemons."""
        environment = {**os.environ, **self.environment}
        subprocess.run(["scancel", "-u", pwd.getpwuid(os.getuid()).pw_name], env=environment, capture_output=True)
        wait_for(lambda: not self.ask("squeue", "-h").strip(), "the queue to be empty")
        for pattern in ("slurm*.pid", "munged.pid"):
            pids = [int(path.read_text()) for path in (self.folder / "run").glob(pattern)]
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda pids=pids: not any(Path(f"/proc/{pid}").exists() for pid in pids), "daemons to stop")

    def _write(self) -> None:
        for name in ("state", "run", "log", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, self.folder / "run"):
            folder.chmod(0o755)  # munge refuses a socket that others could not reach
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host, ports = socket.gethostname().split(".")[0], free_ports(1 + len(NODES))
        user = pwd.getpwuid(os.getuid()).pw_name
        text = CONFIGURATION.format(folder=self.folder, host=host, ports=ports, user=user)
        for node, port in zip(NODES, ports[1:], strict=True):
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000"
            text += f" Gres=gpu:{self.gpus}\n"
        text += f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=60 DefaultTime=60 State=UP\n"
        (self.folder / "slurm.conf").write_text(text)
        gpus = [f"NodeName=node[1-2] Name=gpu File={device}\n" for device in DEVICES[: self.gpus]]
        (self.folder / "gres.conf").write_text("".join(gpus))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _start(self, program: str, *arguments: str) -> None:
        subprocess.run([program, *arguments], env={**os.environ, **self.environment}, check=True)

    def _idle_nodes(self) -> int:
        return len(self.ask("sinfo", "-h", "-N", "-t", "idle").splitlines())


def missing_programs() -> list[str]:
    """Slurm's programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(true: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Return when `true()` is; raises TimeoutError after some time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} seconds for {what}")
        time.sleep(0.2)


def main() -> int:
    """Start or stop a cluster in a folder; without arguments say whether Slurm is installed."""
    if missing := missing_programs():
        print(f"Slurm is not installed ({', '.join(missing)}): {HINT}", file=sys.stderr)
        return 2
    if len(sys.argv) == 3:
        cluster = SlurmCluster(Path(sys.argv[2]).resolve(), gpus=2)
        {"up": cluster.up, "down": cluster.down}[sys.argv[1]]()
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

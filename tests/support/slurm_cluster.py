"""A Slurm of one node on this machine: `python -m tests.support.slurm_cluster -- sbatch --wait --wrap hostname`.

The daemons are real (Debian's `slurm-wlm` and `munge`), need root, and keep all files in one folder. Partitions are
`debug`, the default, and `other`. There is no accounting, hence `sacct` fails; `squeue -t all` and `scontrol show job`
know ended jobs for ten minutes. Nothing needs cgroups or systemd, hence containers will do; memory isn't limited.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("munged", "slurmctld", "slurmd", "setpriv", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
STARTS_WITHIN = 60.0  # seconds, each daemon
STOPS_WITHIN = 10.0  # seconds, each daemon
LONGEST_FOLDER = 70  # characters: it holds sockets, whose paths end at 107

# A requeued job waits for a second more than cred_expire, of which 5 is the least (by default 121 s). One that ignores
# SIGTERM gets SIGKILL after KillWait, in fact 5 s at least (by default 30 s). Addresses are numeric as the hostname may
# not resolve. With config_overrides the node may have more CPUs than the machine.
SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
ReturnToService=2
JobRequeue=1
MinJobAge=600
KillWait=5
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes}
PartitionName=debug Nodes=node Default=YES DefaultTime=10 MaxTime=INFINITE
PartitionName=other Nodes=node Default=NO DefaultTime=10 MaxTime=INFINITE
"""
# Nothing uses cgroups, yet slurmd loads a plugin for them: v2's, chosen by default where there is v2, needs systemd.
CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"


class NotStarted(RuntimeError):
    """Slurm doesn't start here; the text says why."""


class Daemon(NamedTuple):
    """A daemon in the foreground, and the file that has what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


@contextlib.contextmanager
def slurm(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """The variables by which Slurm's commands find the cluster; it and its jobs end with the context."""
    if lack := _lack():
        raise NotStarted(lack)
    folder = folder.resolve()
    if len(str(folder)) > LONGEST_FOLDER:
        raise NotStarted(f"sockets need a folder of at most {LONGEST_FOLDER} characters, not {folder}")
    port = _configure(folder, cpus)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    environment |= {"PATH": _path(), **variables}
    with contextlib.ExitStack() as stack:
        stack.callback(_kill_jobs, variables["SLURM_CONF"])

        def start(*command: str) -> Daemon:
            return stack.enter_context(_daemon(command, folder, environment))

        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        munged = start("munged", "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in files.items()))
        _wait(lambda: (folder / files["socket"]).exists(), munged)
        controller = start("slurmctld", "-D")
        _wait(lambda: _listens(port), munged, controller)
        node = start("slurmd", "-D", "-N", "node")
        _wait(
            lambda: _output(environment, "sinfo", "-h", "-p", "debug", "-o", "%T") == "idle", munged, controller, node
        )
        yield variables


@functools.cache
def reason() -> str | None:
    """Why Slurm doesn't start here, or None where it does: it is tried once."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            with slurm(Path(folder)):
                return None
        except NotStarted as error:
            return str(error)


def _path() -> str:
    """Where programs are looked for; daemons lie where a user's PATH doesn't lead."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _lack() -> str | None:
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"Slurm needs {', '.join(missing)}: apt-get install --no-install-recommends slurm-wlm munge"
    return "Slurm's daemons need root" if os.geteuid() else None


def _configure(folder: Path, cpus: int) -> int:
    """Writes configuration and key; returns the controller's port."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
        controller_port, node_port = one.getsockname()[1], two.getsockname()[1]
    text = SLURM_CONF.format(
        host=socket.gethostname().partition(".")[0],
        controller_port=controller_port,
        node_port=node_port,
        folder=folder,
        cpus=cpus,
        megabytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text(CGROUP_CONF)
    return controller_port


@contextlib.contextmanager
def _daemon(command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> Iterator[Daemon]:
    """Ends with the context, and by the kernel's hand when this process is killed; a terminal's Ctrl-C isn't for it."""
    log = folder / f"{command[0]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Daemon(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready: Callable[[], bool], *daemons: Daemon) -> None:
    """Until `ready`, which is about the last of the daemons, while all of them live."""
    until = time.monotonic() + STARTS_WITHIN
    while not ready():
        for daemon in daemons:
            if daemon.process.poll() is not None:
                raise NotStarted(f"{daemon.log.stem} ended: {daemon.last_line()}")
        if time.monotonic() > until:
            raise NotStarted(f"{daemon.log.stem} isn't ready after {STARTS_WITHIN:.0f} s: {daemon.last_line()}")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _output(environment: dict[str, str], *command: str) -> str | None:
    """What a command prints; None if it fails or takes too long."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=STOPS_WITHIN)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else done.stdout.strip()


def _kill_jobs(configuration: str) -> None:
    """Kills the jobs that the daemons, which have ended, have left: job steps' managers and all below them."""
    mark = f"SLURM_CONF={configuration}".encode()
    for _ in range(20):  # what is killed may have just started something
        parents: dict[int, int] = {}
        found: set[int] = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name, _, rest = (process / "stat").read_text(errors="replace").partition("(")[2].rpartition(") ")
                state, parent = rest.split()[:2]
                variables = (process / "environ").read_bytes().split(b"\0")
                if state == "Z":
                    continue
                parents[int(process.name)] = int(parent)
                of_a_job = any(line.startswith(b"SLURM_JOB_ID=") for line in variables)
                if mark in variables and (of_a_job or name.startswith("slurmstepd")):
                    found.add(int(process.name))
        while below := {process for process, parent in parents.items() if parent in found} - found:
            found |= below
        if not found:
            return
        for process_id in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(0.05)


def main() -> int:
    """Runs a command beside a cluster and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.slurm_cluster", description=main.__doc__)
    parser.add_argument("--cpus", type=int, default=2, help="of the node")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm(Path(folder), options.cpus) as variables:
            status = subprocess.run(options.command, env=os.environ | variables).returncode
    except NotStarted as error:
        sys.exit(str(error))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())

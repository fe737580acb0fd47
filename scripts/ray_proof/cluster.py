"""Two Ray nodes on this machine, and nothing of them afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
STORE_BYTES = 100 << 20
"""Of each node's object store, which the application does not use."""
CPUS = 3
"""That each node says it has, so that exactly one replica fits on it, whatever the machine has."""
START_S, STOP_S = 240.0, 30.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        address: ``host:port`` of its head.
        folder: Where Ray keeps logs and sockets.
        head: The process that holds the head node.
        second: The process that holds the other one.
        environment: What Ray's processes have.
    """

    address: str
    folder: Path
    head: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes]
    environment: Mapping[str, str]

    def processes(self) -> list[psutil.Process]:
        """All processes of both nodes, and what those started."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # A server gets nothing of its supervisor's environment that it does not need.
                if _belongs(process, self.folder):
                    found[process.pid] = process
                    found |= {child.pid: child for child in process.children(recursive=True)}
        return list(found.values())

    def named(self, word: str) -> list[psutil.Process]:
        """The processes of the cluster with a word in their command line, oldest first."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def cluster(environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Runs a head and a second node, on loopback, without dashboard and usage statistics."""
    # Sockets lie in it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    ray = str(Path(sys.executable).with_name("ray"))
    port = free_port()
    common = [
        *(f"--node-ip-address={LOOPBACK}", f"--num-cpus={CPUS}", "--num-gpus=0", "--block"),
        *(f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"),
    ]
    variables = {
        **os.environ,
        **environment,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its half a minute is too little for a busy machine.
        "RAY_raylet_start_wait_time_s": f"{START_S:.0f}",
        "RAY_PROOF": str(folder),
        # Ray's own warnings about the packages it imports.
        "PYTHONWARNINGS": "ignore",
    }
    held: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        with (folder / f"node-{len(held)}.log").open("wb") as log:
            process = subprocess.Popen(
                [ray, "start", *common, *words, f"--dashboard-agent-listen-port={free_port()}"],
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        held.append(process)
        return process

    address = f"{LOOPBACK}:{port}"
    head = second = None
    try:
        head = start(
            "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"
        )
        _wait_for(address, head, folder)
        second = start(f"--address={address}")
        yield Cluster(address, folder, head, second, variables)
    finally:
        _end(held, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, head: subprocess.Popen[bytes], folder: Path) -> None:
    host, _, port = address.partition(":")
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if head.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.2)
    log = (folder / "node-0.log").read_text(errors="replace")
    sys.exit(f"Ray's head did not start:\n{log[-3000:]}")


def _end(held: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Ends both nodes; each takes its own processes with it, and what is left is killed."""
    for process in reversed(held):
        process.terminate()
    psutil.wait_procs(
        [psutil.Process(process.pid) for process in held if process.poll() is None], STOP_S
    )
    for left in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if _belongs(left, folder):
                left.kill()
    for process in held:
        process.wait()


def _belongs(process: psutil.Process, folder: Path) -> bool:
    return process.environ().get("RAY_PROOF") == str(folder)

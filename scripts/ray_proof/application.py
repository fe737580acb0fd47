"""The application on a cluster: its config, what runs of it, and what it listens on."""

from __future__ import annotations

import copy
import ipaddress
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from scripts.ray_proof.cluster import Cluster

REPLICAS, GATEWAY = "replicas", "gateway"
READY_S = 300.0
NODES = 2


class ProofError(Exception):
    """What keeps the proof from going on."""


class Application:
    """The application of a config on a cluster.

    Args:
        cluster: The cluster, which this process joins.
        config: The file that ``manifests --kind ray`` wrote.
    """

    def __init__(self, cluster: Cluster, config: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        self.cluster, self._asking = cluster, threading.Lock()
        self.config: dict[str, Any] = yaml.safe_load(config.read_text())
        self.name = self.config["applications"][0]["name"]
        self.wait(
            lambda: sum(node["Alive"] for node in ray.nodes()) == NODES, "both nodes are there"
        )

    def close(self) -> None:
        """Leaves the cluster."""
        import ray

        ray.shutdown()

    def deploy(
        self, arguments: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]], port: int
    ) -> None:
        """Deploys, or updates what runs, as ``serve run CONFIG`` does.

        Args:
            arguments: Of the application, in place of the config's.
            options: Of its deployments, by name, in place of the config's.
            port: Where the proxy listens.
        """
        config = copy.deepcopy(self.config)
        config["http_options"] |= {"host": "127.0.0.1", "port": port}
        config["proxy_location"] = "HeadOnly"
        (application,) = config["applications"]
        application["args"] = {**application["args"], **arguments}
        for deployment in application["deployments"]:
            chosen = options.get(deployment["name"], {})
            deployment.update(chosen)
        path = self.cluster.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        serve = str(Path(sys.executable).with_name("serve"))
        words = [serve, "run", f"--address={self.cluster.address}", "--non-blocking", str(path)]
        environment = {k: v for k, v in self.cluster.environment.items() if k != "RAY_PROOF"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or "error" in done.stdout.lower():
            raise ProofError(
                f"serve run did not deploy it:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            )

    def states(self, deployment: str) -> dict[str, int]:
        """How many replicas of a deployment are in which state."""
        found = self._found()
        row = found.deployments.get(deployment) if found else None
        return (
            {
                str(getattr(state, "value", state)): count
                for state, count in row.replica_states.items()
            }
            if row
            else {}
        )

    def status(self) -> str:
        """What Ray says of the application."""
        found = self._found()
        return f"{found.status.value}: {found.message}" if found else "NOT_STARTED"

    def _found(self) -> Any:
        from ray import serve

        # Ray's client is not made for several threads.
        with self._asking:
            return serve.status().applications.get(self.name)

    def wait(self, wanted: Callable[[], bool], what: str, seconds: float = READY_S) -> float:
        """Waits for a condition and returns the seconds that it took."""
        began = time.monotonic()
        while not wanted():
            if time.monotonic() - began > seconds:
                raise ProofError(f"after {seconds:.0f} s it is not so that {what}")
            time.sleep(0.25)
        return time.monotonic() - began

    def runs(self, replicas: int) -> bool:
        """Whether exactly so many replicas run, and none comes or goes."""
        return self.states(REPLICAS) == {"RUNNING": replicas} and self.status().startswith(
            "RUNNING"
        )


class Counts:
    """How many replicas ran at a time, while a ``with`` block lasted.

    Attributes:
        seen: The states that there were, each with when it began, in seconds of ``time.monotonic``.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self.seen: list[tuple[float, dict[str, int]]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def fewest(self) -> int:
        """The fewest that ran."""
        return min((states.get("RUNNING", 0) for _, states in self.seen), default=0)

    @property
    def most(self) -> int:
        """The most that ran."""
        return max((states.get("RUNNING", 0) for _, states in self.seen), default=0)

    def __enter__(self) -> Counts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(0.2):
            states = self._application.states(REPLICAS)
            # While an update is being made of its config, Ray lists nothing.
            if states and (not self.seen or self.seen[-1][1] != states):
                self.seen.append((time.monotonic(), states))


def beyond_loopback(cluster: Cluster) -> list[str]:
    """What the cluster's processes listen on that is not loopback, as ``process address:port``."""
    open_ports = []
    mine = {process.pid: process for process in cluster.processes()}
    for connection in psutil.net_connections("inet"):
        if connection.status != psutil.CONN_LISTEN or connection.pid not in mine:
            continue
        address = ipaddress.ip_address(connection.laddr.ip)
        if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
            name = mine[connection.pid].name()
            open_ports.append(f"{name} {connection.laddr.ip}:{connection.laddr.port}")
    return sorted(set(open_ports))


def can_connect(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False

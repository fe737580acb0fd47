"""What a running Triton looks like to its users, however it was started."""

from __future__ import annotations

import contextlib
import http.client
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from typing_extensions import Self

from pipeline.errors import ServerError
from pipeline.triton.memory import Memory
from pipeline.triton.ports import local_address


def open_log(path: Path | None) -> IO[bytes]:
    """Opens a server's log to append to and read from; without a path, one that nobody sees.

    Raises:
        ServerError: It cannot be written.
    """
    if path is None:
        return tempfile.TemporaryFile()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+b")
    except OSError as error:
        raise ServerError(
            "the server's log cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            fix="Give another place with --log, or let this user write to that one",
        ) from error


@dataclass(frozen=True)
class ServerOptions:
    """How a server is asked to run.

    Attributes:
        host: Address to listen on.
        grpc_port: 0 picks a free port; likewise the others.
        devices: GPUs to use, as ``nvidia-smi`` counts them; None takes the first ones.
        orchestrator: One server that spawns a worker per rank.
        mpirun: Start an engine of one rank under ``mpirun`` too.
        watchdog: Restart a server that died (targets whose server this package supervises).
    """

    host: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int = 0
    metrics_port: int = 0
    devices: Sequence[int] | None = None
    orchestrator: bool = False
    mpirun: bool = False
    watchdog: bool = True


class RunningServer(ABC):
    """A server that is ready inside a ``with`` block.

    Attributes:
        host: Address that the endpoints listen on.
        grpc_port: Port of the gRPC endpoint, and so on for the others.
        ready_s: Seconds it took to become ready; None until then.
    """

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int
    ready_s: float | None

    @abstractmethod
    def start(self) -> Self:
        """Launches the server and waits until every model is ready.

        Raises:
            ServerError: It ended or did not become ready; the message holds the cause.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stops the server, with what it started; stopping twice does nothing."""

    @abstractmethod
    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until the server ends, or the time is up.

        Raises:
            ServerError: It ended for a reason of its own.
        """

    @abstractmethod
    def memory(self) -> Memory:
        """Measures the memory that the running server takes on this machine.

        Of servers that run at the same time each counts its share of the libraries they have in
        common, so one that runs alone takes a little more.
        """

    @property
    def grpc_url(self) -> str:
        """``host:port`` for gRPC clients on this machine."""
        return f"{local_address(self.host)}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP endpoint for clients on this machine."""
        return f"http://{local_address(self.host)}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics for clients on this machine."""
        return f"http://{local_address(self.host)}:{self.metrics_port}/metrics"

    def answers(self) -> bool:
        """Asks whether every model is ready; False also when the server does not answer."""
        connection = http.client.HTTPConnection(
            local_address(self.host), self.http_port, timeout=2.0
        )
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == http.client.OK
            except (OSError, http.client.HTTPException):
                return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

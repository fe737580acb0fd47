"""What a running Triton looks like to its users, however it was started."""

from __future__ import annotations

import contextlib
import http.client
import shlex
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

from typing_extensions import Self

from pipeline.triton.access import ServerTls
from pipeline.triton.memory import Memory
from pipeline.triton.ports import local_address

HUNG_AFTER_S = 60.0
GIVE_UP_AFTER_S = 300.0
PROBE_TIMEOUT_S = 2.0
_HEALTH = "/v2/health/ready"
_READY = "/inference.GRPCInferenceService/ServerReady"
# The message ServerReadyResponse with ready = true.
_IS_READY = b"\x08\x01"


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
        hung_after_s: Seconds without a sign of life after which the watchdog restarts a server; 0
            for never.
        give_up_after_s: Seconds of starts that fail, after which the watchdog gives up; 0 for
            never.
        http: Whether there is an HTTP endpoint.
        exit_timeout_s: Seconds that a stopping server waits for requests in flight; None leaves
            the target's own.
        tls: Certificates of the gRPC endpoint (targets whose server this package supervises).
        key: What clients have to send with each request; likewise.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int = 0
    metrics_port: int = 0
    devices: Sequence[int] | None = None
    orchestrator: bool = False
    mpirun: bool = False
    watchdog: bool = True
    hung_after_s: float = HUNG_AFTER_S
    give_up_after_s: float = GIVE_UP_AFTER_S
    http: bool = True
    exit_timeout_s: int | None = None
    tls: ServerTls | None = None
    key: str | None = field(default=None, repr=False)


def in_lines(command: Sequence[str]) -> str:
    """Writes a command for a shell, an option per line, with a backslash at the line's end.

    A word without a dash in front stays beside the option before it.
    """
    lines: list[str] = []
    for word in command:
        quoted = shlex.quote(word)
        if lines and not word.startswith("-") and "=" not in lines[-1]:
            lines[-1] += f" {quoted}"
        else:
            lines.append(quoted)
    return " \\\n  ".join(lines)


class RunningServer(ABC):
    """A server that is ready inside a ``with`` block.

    Attributes:
        host: Address that the endpoints listen on.
        grpc_port: Port of the gRPC endpoint, and so on for the others.
        ready_s: Seconds it took to become ready; None until then.
        http: Whether it has an HTTP endpoint.
        http_host: The HTTP endpoint's own address; None for that of the others.
        encrypted: Whether its gRPC endpoint has TLS.
    """

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int
    ready_s: float | None
    http: bool = True
    http_host: str | None = None
    encrypted: bool = False

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
    def hurry(self) -> None:
        """Ends a stop that waits for requests in flight, or makes the next one not wait.

        A signal handler may call it.
        """

    @property
    @abstractmethod
    def patience_s(self) -> float:
        """Seconds that a stopping server waits for requests in flight."""

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
    def url(self) -> str:
        """The address that clients are given, for ``pipeline.engine_client.connect``."""
        return self.grpc_url

    @property
    def addresses(self) -> dict[str, str]:
        """Where it answers, by protocol, for people and their clients."""
        scheme = "grpcs://" if self.encrypted else ""
        found = {"grpc": f"{scheme}{self.grpc_url}"}
        return {**found, "http": self.http_url} if self.http else found

    @property
    def metrics_headers(self) -> dict[str, str]:
        """What has to be sent for the metrics."""
        return {}

    @property
    def grpc_url(self) -> str:
        """``host:port`` for gRPC clients on this machine; TLS is for them to know."""
        return f"{local_address(self.host)}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP endpoint for clients on this machine."""
        return f"http://{local_address(self.http_host or self.host)}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics for clients on this machine."""
        return f"http://{local_address(self.host)}:{self.metrics_port}/metrics"

    def answers(self) -> bool:
        """Asks whether every model is ready; False also when the server does not answer."""
        if self.http:
            return self._status(f"{self.http_url}{_HEALTH}") == http.client.OK
        if self.encrypted:
            # Its clients' authority signed nothing for its supervisor. Metrics come last, once
            # every model is ready.
            return self._status(self.metrics_url) == http.client.OK and self._greets()
        return self._grpc_answer() == _IS_READY

    def responds(self) -> bool:
        """Asks whether the server answers anything, over HTTP or else over gRPC."""
        if self.http and self._status(f"{self.http_url}{_HEALTH}") is not None:
            return True
        return self._greets() if self.encrypted else self._grpc_answer() is not None

    def news(self) -> list[str]:
        """Returns what happened to the server since the last call, as sentences."""
        return []

    @property
    def trouble(self) -> str | None:
        """Why it does not serve at the moment; None while it does."""
        return None

    def _status(self, url: str) -> int | None:
        place = urlsplit(url)
        assert place.hostname
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=PROBE_TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", place.path)
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def _greets(self) -> bool:
        """Whether a thread of the gRPC endpoint begins TLS with whoever connects."""
        # Whose certificate it is does not matter to somebody who tells nothing.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        place = (local_address(self.host), self.grpc_port)
        try:
            with (
                socket.create_connection(place, PROBE_TIMEOUT_S) as plain,
                context.wrap_socket(plain) as channel,
            ):
                return channel.version() is not None
        except OSError:
            return False

    def _grpc_answer(self) -> bytes | None:
        # Nobody else who serves needs gRPC, whose import takes a moment.
        import grpc

        with grpc.insecure_channel(self.grpc_url) as channel:
            try:
                return bytes(channel.unary_unary(_READY)(b"", timeout=PROBE_TIMEOUT_S))
            except grpc.RpcError:
                return None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

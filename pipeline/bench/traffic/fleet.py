"""The client processes of a load."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pipeline.bench.asking import now
from pipeline.bench.traffic.rounds import Answer
from pipeline.bench.traffic.schedule import CLOSED, Level, Request
from pipeline.errors import ServerError

if TYPE_CHECKING:
    from trtllm_client import Tls

_LEAD_S = 0.2
"""Between the order to begin and the beginning, so that each process has heard it."""
_PATIENCE_S = 10.0
_SHOWN = 2000


@dataclass(frozen=True)
class Server:
    """Where load is sent.

    Attributes:
        url: ``host:port``, ``grpc://host:port`` or ``grpcs://host:port``.
        tls: Certificates.
        headers: gRPC metadata sent with every call.
    """

    url: str
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Returns what a client process has to know, as JSON values."""
        tls = self.tls
        files = tls and (
            tls.root_certificates,
            tls.certificate_chain,
            tls.private_key,
            tls.server_name,
        )
        return {
            "url": self.url,
            "headers": dict(self.headers),
            "tls": [None if value is None else str(value) for value in files] if files else None,
        }


class Fleet:
    """Client processes, inside a ``with`` block.

    Args:
        count: How many.
        servers: Where load is sent, by name.
        model: The Triton model that takes the requests.
        timeout: Seconds for one request.

    Raises:
        ServerError: A process ended by itself.
    """

    def __init__(
        self, count: int, servers: Mapping[str, Server], *, model: str, timeout: float
    ) -> None:
        self._count = count
        self._setup = {
            "servers": {name: server.told() for name, server in servers.items()},
            "model": model,
            "timeout": timeout,
        }
        self._processes: list[subprocess.Popen[str]] = []
        self._errors: list[IO[str]] = []

    def __enter__(self) -> Fleet:
        try:
            for _ in range(self._count):
                errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
                self._errors.append(errors)
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "pipeline.bench.traffic.worker"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        text=True,
                    )
                )
            self._all([self._setup] * self._count)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def run(
        self,
        server: str,
        level: Level,
        requests: Sequence[tuple[Request, int]],
        seconds: float,
        *,
        streams: bool,
    ) -> tuple[list[Answer], float]:
        """Sends one round, each process its part of it.

        Args:
            server: The name of the server.
            level: The load.
            requests: What is planned, with the words of its prompt.
            seconds: When a closed loop begins no further request.
            streams: Whether the model answers in pieces.

        Returns:
            What came, and the share of the time that the busiest process computed.

        Raises:
            ServerError: A process ended by itself.
        """
        jobs = []
        for place in range(self._count):
            kept = None
            if level.kind == CLOSED:
                kept = len(range(place, int(level.amount), self._count))
            rows = [
                [request.number, request.at, words, request.output_tokens]
                for request, words in requests[place :: self._count]
            ]
            jobs.append(
                {
                    "server": server,
                    "streams": streams,
                    "level": kept,
                    "end": seconds,
                    "requests": rows,
                }
            )
        self._all(jobs)
        told = self._all([{"begin": now() + _LEAD_S}] * self._count)
        plan = {request.number: request for request, _ in requests}
        answers = [
            Answer.told(plan[answer["number"]], answer, streamed=streams)
            for one in told
            for answer in one["answers"]
        ]
        return answers, max(one["busy"] for one in told)

    def _all(self, values: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Tells each process one line, and reads one from each."""
        for place, (process, value) in enumerate(zip(self._processes, values, strict=True)):
            assert process.stdin is not None
            try:
                process.stdin.write(f"{json.dumps(value)}\n")
                process.stdin.flush()
            except OSError as error:
                raise self._ended(place) from error
        return [self._read(place) for place in range(self._count)]

    def _read(self, place: int) -> Any:
        process = self._processes[place]
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._ended(place)
        return json.loads(line)

    def _ended(self, place: int) -> ServerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[place].wait(_PATIENCE_S)
        errors = self._errors[place]
        errors.seek(0)
        lines = errors.read()[-_SHOWN:].strip().splitlines()
        return ServerError(
            "a client process of the load ended by itself",
            why=lines[-1] if lines else f"Its exit status is {self._processes[place].returncode}",
            fix="Measure again; with fewer --clients where memory is short",
        )

    def _end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for errors in self._errors:
            errors.close()

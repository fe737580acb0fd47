"""Supervises the tritonserver of the nvidia-pytriton wheel.

A Python stub that dies takes its requests with it: clients wait forever, and Triton reports
itself healthy. Unloading and loading the model brings the model back, but not those clients, and it
needs Triton's model control API, with which anyone who reaches the port can replace the models. So
the watchdog restarts the whole server, on the same ports: requests in flight end with an error that
clients understand, a crash of the server itself is mended in the same way, and the API stays off. A
process that lives and does nothing (:mod:`pipeline.triton.progress`) is taken for a dead one.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ServerError
from pipeline.triton import veil
from pipeline.triton.access import GUARDED_APIS, KEY_NAME, ServerTls
from pipeline.triton.failure import crash_signal, find_cause, has_given_up, is_doomed
from pipeline.triton.flags import CLOSED_APIS, restrictions, server_flags
from pipeline.triton.installation import Installation
from pipeline.triton.log import LogPlace, lines_since, open_log
from pipeline.triton.memory import Memory, memory_of
from pipeline.triton.owners import places, sweep
from pipeline.triton.ports import reserve
from pipeline.triton.process import ServerProcess
from pipeline.triton.progress import Progress
from pipeline.triton.running import GIVE_UP_AFTER_S, HUNG_AFTER_S
from pipeline.triton.stubs import NOTICED_S, LoadingStubs, is_alive, live_stubs
from pipeline.triton.supervisor import State, SupervisedServer

logger = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 5
POLL_S = 0.05
STUBS_S = 0.5
"""Seconds between two looks at the processes of a loading server."""


@dataclass(frozen=True)
class Health:
    """What the supervisor knows about its server.

    Attributes:
        state: ``failed`` means that the watchdog gave up; ``error`` says why.
        pid: tritonserver's process id while it runs.
        stubs: Model names of the Python processes, by process id.
        restarts: How often the watchdog restarted the server.
        error: Why it failed, or what the last recovery was about.
    """

    state: State
    pid: int | None
    stubs: Mapping[int, str]
    restarts: int
    error: str | None


class TritonServer(SupervisedServer):
    """A tritonserver that is ready inside a ``with`` block.

    Args:
        repository: The model repository; every model in it is loaded.
        host: Address of all three endpoints; the default is reachable from this machine only.
        grpc_port: 0 picks a free port, and so on for the others.
        http_port: Health, metadata and the generate endpoints.
        metrics_port: Prometheus metrics.
        log_file: Receives the server's output, appended; None keeps it until the server stops.
        exit_timeout_s: Seconds that a stopping server waits for requests in flight. The whole stop
            takes up to four seconds more.
        ready_timeout_s: Seconds that loading the models may take.
        watchdog: Restart the server when it or one of its Python stubs dies or hangs.
        hung_after_s: Seconds without a sign of life after which one is taken for hung; 0 for never.
        give_up_after_s: Seconds of starts that fail, after which the watchdog gives up; 0 for
            never.
        http: Whether there is an HTTP endpoint.
        backends: Folders of more backends than Python's, by name, as in Triton's own folder of
            backends.
        flags: More tritonserver flags. Never secrets: other users of the machine see them.
        tls: Certificates of the gRPC endpoint; None for a connection that anybody can read.
        key: What clients have to send with each request but those for health; no other user of
            the machine sees it.
        variables: Names of environment variables that the server's processes get beyond those of
            :func:`pipeline.triton.surroundings.passed_on`.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        log_file: LogPlace = None,
        exit_timeout_s: int = EXIT_TIMEOUT_S,
        ready_timeout_s: float = 120.0,
        watchdog: bool = True,
        hung_after_s: float = HUNG_AFTER_S,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        http: bool = True,
        backends: Mapping[str, Path] | None = None,
        flags: Sequence[str] = (),
        variables: Sequence[str] = (),
        tls: ServerTls | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(
            "Triton",
            repository,
            log_file=log_file,
            watchdog=watchdog,
            give_up_after_s=give_up_after_s,
        )
        self.repository, self.host = repository, host
        self.grpc_port, self.http_port, self.metrics_port = grpc_port, http_port, metrics_port
        self._exit_timeout_s, self._ready_timeout_s = exit_timeout_s, ready_timeout_s
        self._backends, self._extra_flags = dict(backends or {}), tuple(flags)
        self._variables = tuple(variables)
        self._tls, self._key = tls, key
        self.encrypted = tls is not None
        self._hung_after_s = hung_after_s
        self._progress: Progress | None = None
        self.http = http
        self._process: ServerProcess | None = None
        self._server: int | None = None
        self._stubs: dict[int, str] = {}
        self._looked_at = 0
        # Whether a start has failed for a reason that a second one need not meet.
        self._passing = False

    def start(self) -> TritonServer:
        """Launches the server and waits until every model is ready.

        A start that fails for a passing reason, as on a busy machine, is repeated once.

        Raises:
            ServerError: A port is taken, or the server ended or did not become ready; the message
                holds the cause from its log.
            MissingDependencyError: nvidia-pytriton is not installed.
        """
        if not self.repository.is_dir():
            raise ServerError(
                "there is no such model repository",
                where=str(self.repository),
                fix="Build one first: trtllm-pipeline run RECIPE",
            )
        if self._tls:
            self._tls.check()
        if self._key and not veil.is_possible():
            raise ServerError(
                "this machine cannot keep a key from its other users",
                why="tritonserver takes it on its command line, which everybody can read, and the "
                "kernel does not let it be hidden there (ptrace of a child is not allowed)",
                fix="Allow it, in a container with --cap-add=SYS_PTRACE, or leave --key-from out "
                "and let a gateway ask for the key",
            )
        wanted = {"gRPC": self.grpc_port, "metrics": self.metrics_port}
        if self.http:
            wanted["HTTP"] = self.http_port
        ports = reserve(self.host, wanted)
        self.grpc_port, self.metrics_port = ports["gRPC"], ports["metrics"]
        self.http_port = ports.get("HTTP", self.http_port)
        self._stopping.clear()
        self._ended.clear()
        self._failure, self._passing = None, False
        self._log = open_log(self.log_file)
        if swept := sweep(places()):
            self._tell(f"removed what killed servers had left: {', '.join(swept)}")
        try:
            self._launch_or_once_more()
        except BaseException:
            self.stop()
            raise
        self._begin_watch()
        return self

    def stop(self) -> None:
        """Stops the server, with what it started, and waits until nothing of it is left."""
        super().stop()
        self._stubs = {}

    def _running(self) -> ServerProcess | None:
        return self._process

    def _forget(self) -> None:
        self._process = None

    @property
    def patience_s(self) -> float:
        """Seconds that a stopping server waits for requests in flight."""
        return self._exit_timeout_s

    def health(self) -> Health:
        """Returns what is known without asking the server."""
        pid = self._process.pid if self._process else None
        return Health(self._state, pid, dict(self._stubs), self._restarts, self._error)

    def memory(self) -> Memory:
        """Measures tritonserver and the Python processes of its models."""
        pid = self._process.pid if self._process else None
        return Memory(None, "the server does not run") if pid is None else memory_of(pid)

    def _flags(self) -> list[str]:
        ports = {
            "grpc_port": self.grpc_port,
            "http_port": self.http_port,
            "metrics_port": self.metrics_port,
        }
        tls = self._tls.flags() if self._tls else []
        return [*server_flags(self.host, ports, http=self.http), *tls, *self._extra_flags]

    def _secrets(self) -> list[str]:
        # A key that nobody knows closes an API for everyone.
        keys = [f"{CLOSED_APIS}:closed={secrets.token_hex(16)}"]
        if self._key:
            keys.append(f"{GUARDED_APIS}:{KEY_NAME}={self._key}")
        return [flag for key in keys for flag in restrictions(key, http=self.http)]

    def _launch_or_once_more(self) -> None:
        try:
            self._launch()
        except ServerError as error:
            if not self._passing:
                raise
            logger.warning("%s: %s; starting it once more", error.what, error.why)
            self._end(at_once=True)
            self._launch()

    def _launch(self) -> None:
        """Starts one process and waits for it; on failure the caller stops it."""
        if self._log is None:
            raise ServerError("the server is stopped", where=self._place())
        started = time.monotonic()
        offset = self._log.seek(0, 2)
        self._state = "starting"
        self._process = ServerProcess(
            Installation.find(),
            self.repository,
            self._flags(),
            self._exit_timeout_s,
            self._log,
            backends=self._backends,
            variables=self._variables,
            secrets=self._secrets(),
            must_hide=self._key is not None,
        )
        stubs, next_look, doomed = LoadingStubs(), started, None
        while not self.answers():
            now, lost, ended = time.monotonic(), None, self._process.poll() is not None
            if now >= next_look:
                # What it said counts also when it has ended, or not begun.
                pid, said = self._process.pid, self._said_since(offset)
                lost = stubs.lost(pid) if pid is not None else None
                if doomed is None and is_doomed(said):
                    doomed = now
                # It mostly ends by itself then, and says more.
                ended = ended or has_given_up(said) or (doomed or now) + NOTICED_S <= now
                next_look = now + STUBS_S
            if lost or ended:
                raise self._explained("Triton did not start", offset, lost)
            if now - started > self._ready_timeout_s:
                what = f"Triton was not ready after {self._ready_timeout_s:.0f} s"
                raise self._explained(what, offset)
            if self._stopping.wait(POLL_S):
                raise ServerError("the server was stopped while it started", where=self._place())
        self._process.close_regions()
        self._process.forget_secrets()
        self.ready_s = time.monotonic() - started
        # One that died just before is among them, so the watchdog notices.
        self._server = self._process.pid
        self._stubs = stubs.names | live_stubs(self._server or 0)
        self._looked_at = offset
        self._progress = Progress(self._process.beats, self.responds, self._hung_after_s)
        self._state = "ready"

    def _explained(self, what: str, offset: int, seen: str | None = None) -> ServerError:
        """The error for a start that failed, with the reason out of the log."""
        cause = find_cause(self._said_since(offset), seen)
        why = self._process.real_paths(cause.why) if self._process else cause.why
        self._passing = cause.passing
        return ServerError(what, where=self._place(), why=why, fix=cause.fix)

    def _fault(self) -> str | None:
        if self._process is None or self._process.poll() is not None:
            return "tritonserver ended by itself"
        # Before the stubs, which die with it.
        if signal_number := self._crashed():
            return f"tritonserver crashed with signal {signal_number}"
        if self._server and not is_alive(self._server):
            return "tritonserver ended by itself"
        dead = sorted({name for pid, name in self._stubs.items() if not is_alive(pid)})
        if dead:
            return f"the Python process of model {', '.join(dead)} died"
        if self._progress is None or self._server is None:
            return None
        return self._progress.fault(self._server, self._stubs)

    def _crashed(self) -> int | None:
        """The signal that the server has said to have crashed with, in lines not looked at yet."""
        if self._log is None:
            return None
        lines, self._looked_at = lines_since(self._log, self._looked_at)
        return crash_signal(lines.decode(errors="replace"))

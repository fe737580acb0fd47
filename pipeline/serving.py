"""Servers on checked repositories, for the commands that need one."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import MANIFEST, check_files, read_manifest
from pipeline.errors import RepositoryError, StoreError, UsageError

if TYPE_CHECKING:
    from types import FrameType

    from pipeline.triton.server import TritonServer


def check_custody(repository: Path) -> dict[str, Any]:
    """Refuses a repository whose files are not those its manifest lists; reads every byte.

    Args:
        repository: A deployed Triton repository.

    Returns:
        The manifest.

    Raises:
        UsageError: The directory does not exist.
        RepositoryError: There is no manifest, or a file was changed, added or removed.
    """
    if not repository.is_dir():
        raise UsageError(
            "there is no such repository",
            where=str(repository),
            fix="Build one first: trtllm-pipeline run configs/demo.yaml",
        )
    try:
        manifest = read_manifest(repository)
    except StoreError as error:
        raise RepositoryError(
            f"the repository has no {MANIFEST}",
            where=str(repository),
            why=error.why,
            fix="Serve a repository that the pipeline built; its manifest travels with it",
        ) from error
    problems = check_files(repository, manifest, memo=None)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RepositoryError(
            f"the repository is not what was built: {problems[0]}{more}",
            where=str(repository),
            fix="Run its recipe again, which deploys it afresh, or copy it again from where it "
            "was built",
        )
    return manifest


@contextmanager
def serving(repository: Path, log: Path, **options: Any) -> Iterator[TritonServer]:
    """A running server on a repository whose custody was checked.

    Args:
        repository: A deployed Triton repository.
        log: Where the server's own log goes.
        options: Passed to :class:`~pipeline.triton.server.TritonServer`.

    Raises:
        RepositoryError: See :func:`check_custody`.
        ServerError: The server did not start.
    """
    check_custody(repository)
    from pipeline.triton.server import TritonServer

    with TritonServer(repository, log_file=log, **options) as server:
        yield server


@contextmanager
def reachable(url: str | None, repository: Path | None) -> Iterator[str]:
    """The address of a server: the one given, or one started here for as long as it is needed.

    Raises:
        UsageError: Neither or both were given.
        ServerError: The server did not start.
    """
    if (url is None) == (repository is None):
        raise UsageError(
            "say where the server is",
            fix="Give --url HOST:PORT of a running one, or --repository DIR to start one",
        )
    if url is not None:
        yield url
        return
    assert repository is not None
    with (
        tempfile.TemporaryDirectory(prefix="trtllm-pipeline-") as folder,
        serving(repository, Path(folder) / "triton.log") as server,
    ):
        yield server.grpc_url


def serve_forever(
    repository: Path,
    log: Path,
    on_ready: Callable[[dict[str, str], float], None],
    **options: Any,
) -> None:
    """Serves until SIGINT or SIGTERM, or until the server is beyond recovery.

    Args:
        repository: A deployed Triton repository.
        log: Where the server's own log goes.
        on_ready: Called with the addresses by protocol and the seconds it took.
        options: Passed to :class:`~pipeline.triton.server.TritonServer`.

    Raises:
        RepositoryError: See :func:`check_custody`.
        ServerError: The server did not start, or died.
    """
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    started = time.monotonic()
    try:
        with serving(repository, log, **options) as server:
            addresses = {"grpc": server.grpc_url, "http": server.http_url}
            on_ready({**addresses, "metrics": server.metrics_url}, time.monotonic() - started)
            while not stop.is_set():
                server.wait(0.2)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Servers on checked repositories, for the commands that need one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.client_errors import client_errors
from pipeline.errors import RepositoryError, ServerError, StoreError, UsageError
from pipeline.reading.files import is_folder, shortened
from pipeline.reading.json_text import read_json
from pipeline.store.artifact import MANIFEST, WARNING, check_files, read_manifest
from pipeline.store.deployed import FOLDER
from pipeline.targets import get_target
from pipeline.triton.log import LogPlace
from pipeline.triton.running import RunningServer, ServerOptions

if TYPE_CHECKING:
    from pipeline.targets.base import ServeCommand

REPORT = "report.json"


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
    if not is_folder(repository):
        is_file = repository.is_file()
        raise UsageError(
            "this is a file, no repository" if is_file else "there is no such repository",
            where=shortened(repository),
            fix="Name build/<name>, which trtllm-pipeline run RECIPE makes"
            if is_file
            else "Build one first: trtllm-pipeline run RECIPE",
        )
    manifest = _manifest(repository)
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


def check_provenance(repository: Path, manifest: Mapping[str, Any], key: Path | None) -> None:
    """Refuses a repository that the owner of a key did not sign.

    Args:
        repository: The repository.
        manifest: From :func:`check_custody`.
        key: PEM of the public key; None asks for no signature.

    Raises:
        RepositoryError: There is no signature, or it does not hold.
        UsageError: The key cannot be used.
        MissingDependencyError: cryptography is not installed.
    """
    if key is not None:
        from pipeline.provenance.envelope import check_signature

        check_signature(repository, manifest, key)


def warning_of(repository: Path) -> str | None:
    """Returns what whoever serves a repository has to know of it; None for one that passed.

    A repository that did not pass verification says so in its manifest, under any name. One that
    did stays in its build's folder when a later run does not pass, which the report beside it says.
    """
    try:
        warning = read_manifest(repository).get(WARNING)
    except StoreError:
        return None  # serving it is refused, with the reason
    if warning is not None:
        return f"this repository was not released: {warning}"
    verdict = _verdict_beside(repository)
    if verdict.get("status") != "failed" or repository.resolve().name != FOLDER:
        return None
    return (
        "this repository is of an earlier run; the last one did not pass: "
        f"{verdict.get('headline')}"
    )


def _verdict_beside(repository: Path) -> Mapping[str, Any]:
    """The verdict of the build that a repository lies in; empty where there is none to be read."""
    try:
        verdict = read_json(repository.resolve().parent / REPORT, finite=False)["verdict"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return verdict if isinstance(verdict, Mapping) else {}


def _manifest(repository: Path) -> dict[str, Any]:
    try:
        return read_manifest(repository)
    except StoreError as error:
        where = str(repository)
        fix = "Name a repository that the pipeline built; its manifest travels with it"
        if (repository / MANIFEST).exists():
            what = f"the repository's {MANIFEST} cannot be used"
            raise RepositoryError(what, where=where, why=error.why, fix=fix) from error
        if any(repository.glob("*/config.pbtxt")):
            what = f"the repository has no {MANIFEST}"
            raise RepositoryError(what, where=where, fix=fix) from error
        raise RepositoryError(
            "this folder is neither a repository nor that of a build with one",
            where=where,
            why=f"A repository has models and {MANIFEST} in it, a build's folder has {FOLDER}/",
            fix="Name build/<name> after trtllm-pipeline run, or a copy of the repository in it",
        ) from error


def open_server(
    repository: Path, log: LogPlace, *, target: str | None = None, **options: Any
) -> RunningServer:
    """Makes a server for a repository of any target, to be started with ``with``.

    Args:
        repository: The repository.
        log: Where the server's own log goes.
        target: Its compile target; None reads it from the repository's manifest.
        options: Fields of :class:`pipeline.triton.running.ServerOptions`.

    Raises:
        RepositoryError: There is no manifest.
        UsageError: A GPU option was given for a repository of the CPU.
        UnsupportedError: This machine cannot serve it; the message has the command for one that
            can.
    """
    wanted = get_target(target or target_of(repository))
    return wanted.server(repository, log, ServerOptions(**options))


def serve_command(repository: Path, **options: Any) -> ServeCommand:
    """Composes the command that serves a repository, for this machine or another.

    Args:
        repository: The repository.
        options: Fields of :class:`pipeline.triton.running.ServerOptions`.

    Raises:
        RepositoryError: See :func:`check_custody`.
        UsageError: An option is not one of the repository's target.
        UnsupportedError: No known image can read the engine.
    """
    check_custody(repository)
    return get_target(target_of(repository)).serve_command(repository, ServerOptions(**options))


def compose_text(repository: Path, **options: Any) -> str:
    """Writes a compose file that serves a repository, for this machine or another.

    Args:
        repository: The repository.
        options: Fields of :class:`pipeline.triton.running.ServerOptions`.

    Raises:
        RepositoryError: See :func:`check_custody`.
        UsageError: An option is not one of the repository's target.
        UnsupportedError: No known image can read the engine.
    """
    check_custody(repository)
    return get_target(target_of(repository)).compose(repository, ServerOptions(**options))


def check_ports(ports: Mapping[str, int]) -> None:
    """Refuses ports that no server could open together; whether they are free is another matter.

    Args:
        ports: By the name that their option begins with; 0 picks a free one.

    Raises:
        UsageError: One is no port, or two are the same.
    """
    for name, port in ports.items():
        if not 0 <= port <= 65535:
            raise UsageError(f"--{name}-port must be between 0 and 65535, not {port}")
    for port in filter(None, ports.values()):
        options = [f"--{name}-port" for name, its in ports.items() if its == port]
        if len(options) > 1:
            raise UsageError(
                f"{' and '.join(options)} are the same: {port}",
                fix="Choose another; 0 picks a free one",
            )


def device_numbers(text: str | None) -> list[int] | None:
    """Reads GPU numbers from ``0,1``; None for None.

    Raises:
        UsageError: It is something else.
    """
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(
            f"--devices {text} does not name GPUs",
            fix="Give their numbers as nvidia-smi counts them, e.g. --devices 0,1",
        )
    return [int(word) for word in words]


def target_of(repository: Path) -> str:
    """Reads the compile target's name from a repository's manifest.

    Raises:
        RepositoryError: There is no manifest, or it names no target.
    """
    target = _manifest(repository)["facts"].get("target")
    if target is None:
        raise RepositoryError(
            f"{MANIFEST} does not say which compile target the repository is for",
            where=str(repository),
            fix="Run its recipe again, which deploys it afresh",
        )
    return str(target)


@contextmanager
def serving(
    repository: Path, log: LogPlace, *, signer: Path | None = None, **options: Any
) -> Iterator[RunningServer]:
    """Runs a server on a repository, whose custody it checks first.

    Args:
        repository: A deployed Triton repository.
        log: Where the server's own log goes.
        signer: PEM of the public key of whoever has to have signed it.
        options: Passed to :func:`open_server`.

    Raises:
        RepositoryError: See :func:`check_custody` and :func:`check_provenance`.
        UnsupportedError: See :func:`open_server`.
        ServerError: The server did not start.
    """
    check_provenance(repository, check_custody(repository), signer)
    with open_server(repository, log, **options) as server:
        yield server


@dataclass(frozen=True)
class Addresses:
    """Where a server answers.

    Attributes:
        grpc: ``host:port`` of gRPC; of a server with OpenAI's API its URL.
        http: URL of HTTP; empty where it is not known.
        metrics: URL of its metrics; empty where it is not known.
    """

    grpc: str
    http: str = ""
    metrics: str = ""


@contextmanager
def reachable(url: str | None, repository: Path | None) -> Iterator[Addresses]:
    """Yields the addresses of a server: the one given, or one started here for as long as needed.

    The log of a server started here outlives it when it has something to explain.

    Raises:
        UsageError: Neither or both were given.
        ServerError: The server did not start.
    """
    if url is not None and repository is not None:
        raise UsageError(
            "--url and --repository exclude each other",
            fix="Give --url for a running server, or --repository to start one",
        )
    if url is not None:
        yield Addresses(url)
        return
    if repository is None:
        raise UsageError(
            "say where the server is",
            fix="Give --url HOST:PORT of a running one, or --repository DIR to start one",
        )
    # Inside, so that a request which failed keeps the log as well.
    with serving_with_own_log(repository) as server, client_errors():
        yield Addresses(server.url, server.http_url if server.http else "", server.metrics_url)


@contextmanager
def serving_with_own_log(repository: Path, **options: Any) -> Iterator[RunningServer]:
    """Runs a server whose log is kept only where it has something to explain.

    Args:
        repository: A deployed Triton repository.
        options: Passed to :func:`open_server`.

    Raises:
        RepositoryError: See :func:`check_custody`.
        UnsupportedError: See :func:`open_server`.
        ServerError: The server did not start; the remedy names the log, as it does in one that is
            raised while it runs.
    """
    folder = Path(tempfile.mkdtemp(prefix="trtllm-pipeline-"))
    log = folder / "triton.log"
    kept = False
    try:
        with serving(repository, log, **options) as server:
            yield server
    except ServerError as error:
        kept = log.is_file()
        if kept and str(log) not in str(error):
            error.fix = f"{error.fix or 'See the log'}; the server's log is {log}"
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)

"""The lines of shell that start the wheel's tritonserver without its supervisor."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.triton.access import ServerTls
from pipeline.triton.flags import CLOSED_APIS, restrictions, server_flags
from pipeline.triton.guardian import STACK_BYTES
from pipeline.triton.installation import Installation
from pipeline.triton.running import in_lines
from pipeline.triton.surroundings import calling_threads

_LINK = (
    "import sys; from pathlib import Path; from pipeline.triton.installation import Installation; "
    "Installation.find().link(Path(sys.argv[1]))"
)

# Placeholders that no path has, so that quoting leaves the shell's variables alone.
_VARIABLES = {"@run@": "$run", "@key@": "$key", "@path@": "$PATH"}


@dataclass(frozen=True)
class ByHand:
    """A shell script that becomes tritonserver.

    Attributes:
        lines: The script.
        exit_timeout_s: Seconds that the stopping server waits for requests in flight.
        image: None: it starts in place.
    """

    lines: str
    exit_timeout_s: int
    image: str | None = None

    @property
    def command(self) -> Sequence[str]:
        """The command, word by word."""
        return ["sh", "-ec", self.lines]

    @property
    def text(self) -> str:
        """The whole command line for a shell."""
        return shlex.join(self.command)


def _with_variables(word: str) -> str:
    """Quotes a word for a shell that puts the values of its variables into it."""
    quoted = shlex.quote(word)
    # Within single quotes a variable is none, so they end before it and begin again.
    mark = "" if quoted == word else "'"
    for place, variable in _VARIABLES.items():
        quoted = quoted.replace(place, f'{mark}"{variable}"{mark}')
    return quoted


def by_hand(
    repository: Path,
    host: str,
    ports: dict[str, int],
    exit_timeout_s: int,
    *,
    http: bool = True,
    tls: ServerTls | None = None,
) -> ByHand:
    """Writes what a supervisor does to start a server, for a shell.

    The wheel needs a folder of links before its server can run, so this is no single command.

    Args:
        repository: The repository.
        host: Address to listen on.
        ports: ``grpc_port``, ``http_port`` and ``metrics_port``.
        exit_timeout_s: Seconds that the stopping server waits for requests in flight.
        http: Whether there is an HTTP endpoint.
        tls: Certificates of the gRPC endpoint.

    Raises:
        MissingDependencyError: nvidia-pytriton is not installed.
        ServerError: It does not run with this Python.
    """
    installation = Installation.find()
    folder, key, path = Path("@run@"), f"{CLOSED_APIS}:closed=@key@", "@path@"
    environment = installation.environment(folder, {"PATH": path})
    command = [
        "exec",
        "env",
        *(f"{name}={environment[name]}" for name in ("PATH", "LD_LIBRARY_PATH")),
        str(installation.binary),
        f"--model-repository={folder}/repository",
        f"--backend-directory={folder}/backends",
        "--backend-config=python,shm-region-prefix-name=trtllm_pipeline_@key@_",
        f"--backend-config=python,thread-pool-size={calling_threads(repository)}",
        f"--exit-timeout-secs={exit_timeout_s}",
        *restrictions(key, http=http),
        *server_flags(host, ports, http=http),
        *(tls.flags() if tls else ()),
    ]
    shown = in_lines(command)
    for word in command:
        shown = shown.replace(shlex.quote(word), _with_variables(word))
    link = shlex.join([sys.executable, "-c", _LINK])
    lines = [
        "umask 077",
        f"ulimit -S -s {STACK_BYTES >> 10} || :",
        'run=$(mktemp -d "${TMPDIR:-/tmp}/tritonserver-XXXXXXXX") &&',
        f'{link} "$run" &&',
        f'ln -s {shlex.quote(str(repository.resolve()))} "$run/repository" &&',
        "key=$(od -vAn -N16 -tx1 /dev/urandom | tr -d ' \\n') &&",
        shown,
    ]
    return ByHand("\n".join(lines), exit_timeout_s)

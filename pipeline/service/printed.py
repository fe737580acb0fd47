"""What would serve a repository, to copy: a command, a systemd unit, or a compose file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UsageError
from pipeline.service.systemd import unit_text
from pipeline.serving import check_custody, check_provenance, compose_text, serve_command
from pipeline.triton.compose import project_name
from pipeline.triton.running import ServerOptions

Form = Literal["command", "systemd", "compose"]
PORTS = ("grpc_port", "http_port", "metrics_port")


def printed(
    form: Form,
    repository: Path,
    options: Mapping[str, Any],
    environment: Sequence[str],
    *,
    key_from: str | None = None,
    signer: Path | None = None,
    openai: int | None = None,
) -> dict[str, Any]:
    """Writes one of the forms.

    Args:
        form: Which.
        repository: The repository.
        options: Fields of :class:`pipeline.triton.running.ServerOptions`.
        environment: Names of variables that the server is to have.
        key_from: The variable that holds the key of ``options``.
        signer: Public key of whoever has to have signed the repository; it is checked now, and
            again by a unit at each start.
        openai: Port of a gateway beside the server.

    Returns:
        ``text``; for a command also ``command``, word by word, and ``image``, which is None where
        it starts in place.

    Raises:
        RepositoryError: See :func:`pipeline.serving.check_custody`.
        UsageError: A port is 0, or an option is not one of the repository's target.
        UnsupportedError: No known image can read the engine.
    """
    if any(options[port] == 0 for port in PORTS):
        raise UsageError(
            f"--print {form} needs the numbers of all ports",
            why="0 picks one only when the server starts",
            fix="Give --grpc-port, --http-port and --metrics-port other numbers",
        )
    if openai is not None and form != "systemd":
        raise UsageError(
            f"--openai does not go with --print {form}",
            why="The gateway is a process of its own there",
            fix="Leave it out, and start trtllm-pipeline gateway --url beside the server",
        )
    if openai == 0:
        raise UsageError(
            f"--print {form} needs the number of the port", fix="Give --openai another number"
        )
    if signer:
        check_provenance(repository, check_custody(repository), signer)
    if form == "compose":
        return {"text": compose_text(repository, **options)}
    if form == "command" and options.get("key"):
        raise UsageError(
            "--key-from does not go with --print command",
            why="Tritonserver takes its keys on the command line, which all users of the machine "
            "can read; serve alone hides them there",
            fix="Leave it out, or take --print systemd",
        )
    launch = serve_command(repository, **options)
    if form == "command":
        return {"command": list(launch.command), "image": launch.image, "text": launch.lines}
    words = [*program(), "serve", str(repository.resolve()), *_words(options)]
    words += [f"--env={name}" for name in environment]
    if openai is not None:
        words.append(f"--openai={openai}")
    if signer:
        words.append(f"--require-provenance={signer.resolve()}")
    if key_from:
        words.append(f"--key-from={key_from}")
    return {
        "text": unit_text(
            [*words, "--log=-"],
            repository.resolve(),
            project_name(repository),
            exit_timeout_s=launch.exit_timeout_s,
            container=launch.image is not None,
            environment=[*environment, *([key_from] if key_from else [])],
        )
    }


def program() -> list[str]:
    """Returns how this command line is started from anywhere: its script, or its module."""
    script = Path(sys.executable).with_name("trtllm-pipeline")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "pipeline"]


def _words(options: Mapping[str, Any]) -> list[str]:
    words = [f"--host={options['host']}"]
    http = options.get("http", True)
    words += [
        f"--{port.replace('_', '-')}={options[port]}"
        for port in PORTS
        if http or port != "http_port"
    ]
    if tls := options.get("tls"):
        words += [
            f"--tls-cert={tls.certificate.resolve()}",
            f"--tls-key={tls.private_key.resolve()}",
        ]
        if tls.client_authority:
            words.append(f"--tls-client-ca={tls.client_authority.resolve()}")
    if options["exit_timeout_s"] is not None:
        words.append(f"--drain={options['exit_timeout_s']}")
    if options["devices"] is not None:
        words.append(f"--devices={','.join(map(str, options['devices']))}")
    usual = ServerOptions()
    for name in ("hung_after_s", "give_up_after_s"):
        if options.get(name, getattr(usual, name)) != getattr(usual, name):
            words.append(f"--{name[:-2].replace('_', '-')}={options[name]:g}")
    return [*words, *(f"--{flag}" for flag in ("orchestrator", "mpirun") if options[flag])]

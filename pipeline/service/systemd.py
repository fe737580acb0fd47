"""A systemd unit that serves one repository."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UsageError

CLEAR_UP_S = 30
"""Seconds beyond the wait for requests in flight until systemd kills what is left."""


def unit_text(
    command: Sequence[str],
    repository: Path,
    name: str,
    *,
    exit_timeout_s: float,
    container: bool,
    environment: Sequence[str] = (),
    what: str = "Triton server",
    ready: str = "every model is ready, and gives up by itself when one is not",
    behind: str | None = None,
) -> str:
    """Writes the unit; keys as of systemd.unit(5), systemd.service(5) and systemd.exec(5).

    Args:
        command: What runs, with absolute paths.
        repository: What is served.
        name: Of the unit.
        exit_timeout_s: Seconds that the stopping server waits for requests in flight.
        container: Whether the command starts a container of Docker's.
        environment: Names of variables of the manager that the service is to have.
        what: What it is, for its description.
        ready: When it says that it is ready, for a comment.
        behind: The unit of what it talks to, which starts with it and may end without it.

    Raises:
        UsageError: A word cannot stand in a unit.
    """
    words = " ".join(_quoted(word) for word in command)
    others = f" {behind}.service" if behind else ""
    after = "network-online.target" + (" docker.service" if container else "") + others
    return "\n".join(
        [
            f"# /etc/systemd/system/{name}.service",
            f"#   systemctl daemon-reload && systemctl enable --now {name}",
            f"#   journalctl --unit {name} --follow",
            "[Unit]",
            f"Description={what} of {_plain(str(repository))}",
            f"Wants=network-online.target{others}",
            f"After={after}",
            *(["Requires=docker.service"] if container else []),
            "StartLimitIntervalSec=10min",
            "StartLimitBurst=5",
            "",
            "[Service]",
            f"# It says itself when {ready}.",
            "Type=notify",
            "NotifyAccess=main",
            "TimeoutStartSec=infinity",
            "# Whoever may read the repository; an account of its own is better than a person's.",
            f"User={getpass.getuser()}",
            *(["SupplementaryGroups=docker"] if container else []),
            *(f"PassEnvironment={variable}" for variable in environment),
            f"ExecStart={words}",
            "Restart=on-failure",
            "RestartSec=5",
            "# Wrong options, another machine's engine, a damaged repository: no restart helps.",
            "RestartPreventExitStatus=2 3 5",
            "# The signal goes to the supervisor alone, which stops the server in order. It waits",
            f"# up to {exit_timeout_s:.0f} s for requests in flight, and needs a moment more.",
            "KillMode=mixed",
            "KillSignal=SIGTERM",
            f"TimeoutStopSec={exit_timeout_s + CLEAR_UP_S:.0f}",
            "# Stopped before it was ready.",
            "SuccessExitStatus=143",
            "LimitMEMLOCK=infinity",
            "LimitNOFILE=65536",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "ProtectHome=read-only",
            "PrivateTmp=yes",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _plain(text: str) -> str:
    if not text.isprintable():
        raise UsageError(
            f"{text!r} cannot stand in a unit",
            why="It has characters that are not printable",
            fix="Name it by a path without them, such as a symbolic link",
        )
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """Quotes a word for ExecStart: specifiers, variables, and what separates words."""
    text = _plain(word).replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    # A lone semicolon would end the command.
    safe = text and not set(text) & set(" '\"\\;")
    return text if safe else f'"{text}"'

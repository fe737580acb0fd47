"""The parts that compose files of all targets have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.triton.running import ServerOptions

INSIDE_PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
"""Ports of a server inside its container, by the option that publishes each."""

_ASK = (
    # Docker gives containers the proxy of its configuration, which has another 127.0.0.1.
    "import urllib.request as u; u.build_opener(u.ProxyHandler({}))"
    ".open('http://127.0.0.1:8000/v2/health/ready', timeout=3)"
)


def compose_text(name: str, service: Mapping[str, Any], head: Sequence[str]) -> str:
    """Writes a compose file of one service.

    Args:
        name: Of the project and of the service.
        service: As the compose specification has it.
        head: Comments for the beginning, one a line.
    """
    content = {"name": name, "services": {"triton": _literal(service)}}
    text = yaml.safe_dump(content, sort_keys=False, width=1000, allow_unicode=True)
    # A path may hold a line break, which would end the comment.
    shown = ("".join(c if c.isprintable() else "?" for c in line) for line in head)
    return "".join(f"# {line}".rstrip() + "\n" for line in shown) + text


def confined_service(
    repository: Path,
    mount: str,
    options: ServerOptions,
    *,
    user: str,
    shm_size: str,
    start_period: str,
    stop_s: float,
) -> dict[str, Any]:
    """Returns what every service has: no privilege, a read-only repository, published ports.

    Args:
        repository: On this machine.
        mount: Where the server finds it.
        options: Address and ports of this machine.
        user: ``uid:gid`` inside.
        shm_size: Of ``/dev/shm``, through which Python models exchange tensors.
        start_period: How long it may load before failures of the health check count.
        stop_s: Seconds from SIGTERM to SIGKILL.
    """
    host = f"[{options.host}]" if ":" in options.host else options.host
    return {
        "init": True,
        "restart": "on-failure",
        "stop_grace_period": f"{stop_s:.0f}s",
        "user": user,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "shm_size": shm_size,
        "ports": [
            f"{host}:{getattr(options, option)}:{inside}"
            for option, inside in INSIDE_PORTS.items()
            # Inside it is there for the health check.
            if options.http or option != "http_port"
        ],
        "volumes": [
            {
                "type": "bind",
                "source": str(repository.resolve()),
                "target": mount,
                "read_only": True,
                "bind": {"create_host_path": False},
            }
        ],
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _ASK],
            "interval": "10s",
            "timeout": "5s",
            "start_period": start_period,
            "retries": 3,
        },
        "logging": {"driver": "json-file", "options": {"max-size": "16m", "max-file": "3"}},
    }


def project_name(repository: Path) -> str:
    """Makes a name of a compose project, or a unit, from the folder of a build."""
    word = repository.resolve()
    name = word.parent.name if word.name.partition(".")[0] == "repository" else word.name
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
    return f"triton-{kept}" if kept else "triton"


def _literal(value: Any) -> Any:
    """Doubles each dollar, which compose would take for a variable."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return value

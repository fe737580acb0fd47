"""The ``docker run`` command that serves a repository in the pinned image."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.targets.tensorrt.docker import bind, confined
from pipeline.targets.tensorrt.serve.container import INSIDE, MOUNT, Endpoints

# The image's own unprivileged user, triton-server.
USER = "1000:1000"
UID = 1000


def docker_command(
    image: str,
    repository: Path,
    command: Sequence[str],
    *,
    name: str,
    devices: Sequence[int | str],
    published: Endpoints,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Runs a command of :mod:`.container` with the repository at ``/models``.

    The container is unprivileged, sees the repository read-only, and is reachable at
    ``published.host`` alone.

    Args:
        image: The image's full name.
        repository: The repository on this machine.
        command: What runs inside.
        name: The container's name.
        devices: The GPUs it sees: numbers as ``nvidia-smi`` counts them, or names of MIG slices.
        published: Address and ports of this machine.
        environment: More environment variables; never secrets, the command line is public.

    Raises:
        UnsupportedError: Docker cannot express the repository's path.
    """
    host, http_host = (
        f"[{name}]" if ":" in name else name
        for name in (published.host, published.http_host or published.host)
    )
    numbers = ",".join(map(str, devices))
    # Docker reads the value as CSV, so a list needs quotes of its own.
    gpus = f"device={numbers}" if len(devices) == 1 else f'"device={numbers}"'
    variables = {"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}  # noqa: S108
    return [
        *confined(name, USER, gpus),
        *(f"--env={key}={value}" for key, value in {**variables, **(environment or {})}.items()),
        f"--mount={bind(repository, MOUNT, readonly=True)}",
        *(
            f"--publish={address}:{outside}:{inside}"
            for address, outside, inside in (
                (http_host, published.http, INSIDE.http),
                (host, published.grpc, INSIDE.grpc),
                (host, published.metrics, INSIDE.metrics),
            )
        ),
        image,
        *command,
    ]


def unreadable(repository: Path) -> str | None:
    """Finds the first path that the container's user cannot read; None when it can read all."""
    for directory, folders, files in os.walk(repository):
        for name in (".", *folders, *files):
            path = Path(directory, name)
            status = path.stat()
            needed = 0o5 if path.is_dir() else 0o4
            if status.st_uid == UID:
                needed <<= 6
            if status.st_mode & needed != needed:
                return os.path.normpath(path)
    return None


def remove_container(name: str) -> None:
    """Ends a container that did not end by itself."""
    subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False, timeout=60)

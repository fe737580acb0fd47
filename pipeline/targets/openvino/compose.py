"""A compose file of the CPU server, whose image is built from a checkout."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.triton.compose import INSIDE_PORTS, compose_text, confined_service, project_name
from pipeline.triton.running import ServerOptions

IMAGE = "trtllm-pipeline-cpu"
MOUNT = "/models"
# What the supervisor takes beyond Triton's own exit timeout, and a margin.
CLEAR_UP_S = 15
NOBODY = 1000
SHARED_MEMORY = 1 << 30
"""Bytes of ``/dev/shm``, through which Triton and its Python models exchange tensors."""


def serve_words(exit_timeout_s: int | str) -> list[str]:
    """Returns what follows the image's entry point: every address, the ports of the inside.

    Args:
        exit_timeout_s: Seconds that the stopping server waits for requests in flight.
    """
    ports = [f"--{name.replace('_', '-')}={port}" for name, port in INSIDE_PORTS.items()]
    return ["serve", MOUNT, "--host=0.0.0.0", *ports, f"--drain={exit_timeout_s}", "--log=-"]


def compose_file(repository: Path, options: ServerOptions, exit_timeout_s: int) -> str:
    """Writes the file.

    Args:
        repository: The repository.
        options: Where it is published.
        exit_timeout_s: Seconds that the stopping server waits for requests in flight.
    """
    # Whoever can read the repository here can there; root is not needed.
    user = f"{os.getuid() or NOBODY}:{os.getgid() or NOBODY}"
    service = {
        "image": IMAGE,
        # Inside, every address; outside, what "ports" says.
        "command": serve_words(exit_timeout_s),
        "environment": {"HOME": "/tmp"},  # noqa: S108
        **confined_service(
            repository,
            MOUNT,
            options,
            user=user,
            shm_size="1g",
            start_period="5m",
            stop_s=exit_timeout_s + CLEAR_UP_S,
        ),
        "read_only": True,
        # The server's private folder, with links to libraries.
        "tmpfs": ["/tmp:exec,mode=1777"],  # noqa: S108
    }
    head = [
        f"Serves {repository.resolve()} on the CPU. Nobody publishes the image; build it in a",
        f"checkout of trtllm-pipeline:  docker build --file docker/cpu.Dockerfile --tag {IMAGE} .",
        "Start:  docker compose --file FILE up --detach --wait",
        "Stop:   docker compose --file FILE down",
    ]
    return compose_text(project_name(repository), service, head)

"""A compose file of the pinned image on one repository, as the ``docker run`` command starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.targets.handed_on import handed_on
from pipeline.targets.tensorrt.docker import selinux_enforces
from pipeline.targets.tensorrt.serve.container import MOUNT, ORCHESTRATOR_ENVIRONMENT
from pipeline.targets.tensorrt.serve.docker import USER
from pipeline.targets.tensorrt.serve.launch import Launch, engine_ranks
from pipeline.triton.compose import compose_text, confined_service, project_name
from pipeline.triton.running import ServerOptions

CLEAR_UP_S = 30
"""What Docker and mpirun get after Triton's own exit timeout."""


def compose_file(
    repository: Path,
    launch: Launch,
    devices: Sequence[int] | None,
    *,
    orchestrator: bool = False,
) -> str:
    """Writes the file.

    Args:
        repository: The repository.
        launch: From :func:`.launch.docker_launch`.
        devices: The GPUs; None leaves the choice to Docker.
        orchestrator: Whether the launch is in orchestrator mode.
    """
    points = launch.endpoints
    options = ServerOptions(
        points.host, points.grpc, points.http, points.metrics, http=points.http_host is None
    )
    common = confined_service(
        repository,
        MOUNT,
        options,
        user=USER,
        shm_size="2g",
        start_period="30m",
        stop_s=launch.exit_timeout_s + CLEAR_UP_S,
    )
    if selinux_enforces():
        common["security_opt"] = [*common["security_opt"], "label:disable"]
    gpus = (
        {"count": engine_ranks(repository)} if devices is None else {"device_ids": _words(devices)}
    )
    words = list(launch.command)
    environment: dict[str, Any] = {"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}  # noqa: S108
    service = {
        "image": launch.image,
        "command": words[words.index(str(launch.image)) + 1 :],
        "environment": {
            **environment,
            **(ORCHESTRATOR_ENVIRONMENT if orchestrator else {}),
            # By name only: compose hands the value on from its own environment.
            **dict.fromkeys(handed_on()),
        },
        **common,
        "ulimits": {"memlock": -1, "stack": 67108864},
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", **gpus, "capabilities": ["gpu"]}]}
            }
        },
    }
    head = [
        f"Serves {repository.resolve()} in the image that can read its engine.",
        "Start:  docker compose --file FILE up --detach --wait",
        "Stop:   docker compose --file FILE down",
    ]
    return compose_text(project_name(repository), service, head)


def _words(devices: Sequence[int]) -> list[str]:
    return [str(device) for device in devices]

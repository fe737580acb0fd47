"""The config of Ray Serve for a build: what ``serve deploy`` and a RayService take."""

from __future__ import annotations

from typing import Any

from pipeline.rayserve.deployments import (
    GATEWAY,
    REPLICAS,
    gateway_options,
    replica_options,
)
from pipeline.rayserve.options import Options
from pipeline.rayserve.sizing import Size

IMPORT_PATH = "pipeline.rayserve:app"
PORT = 8000
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 -- inside a pod, where it is asked for


def serve_config(
    options: Options, size: Size, *, name: str, host: str = LOOPBACK
) -> dict[str, Any]:
    """Returns a config as Ray Serve's ``ServeDeploySchema`` has it.

    Args:
        options: What was chosen; ``repository`` is the folder on the nodes.
        size: What a replica is good for.
        name: The application's.
        host: Address that the proxies listen on.
    """
    given = options.model_dump(exclude_defaults=True)
    arguments = {"repository": options.repository, **given}
    return {
        "proxy_location": "EveryNode",
        # A client that waits for a stream must not be cut off by a clock.
        "http_options": {"host": host, "port": PORT},
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": name,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": arguments,
                "deployments": [
                    {"name": GATEWAY, **gateway_options(options, size)},
                    {"name": REPLICAS, **replica_options(options, size)},
                ],
            }
        ],
    }

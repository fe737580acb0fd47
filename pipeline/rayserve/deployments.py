"""How the two deployments are run: sizes, scaling, draining, health."""

from __future__ import annotations

from typing import Any

from pipeline.rayserve.options import Options
from pipeline.rayserve.sizing import Size

GATEWAY, REPLICAS = "gateway", "replicas"

HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5, 15
"""Seconds between two questions for health, and that an answer may take: the server is asked for up
to two, on a machine that is busy with generating."""
STOP_S = 15
"""Seconds that a server without requests takes to stop, and to spare."""
UPSCALE_DELAY_S, LOOK_BACK_S = 10, 15
"""Seconds that more is wanted before there is more, and over which it is averaged. Ray's 30 and 30
are for clients that wait longer for their first word."""
STREAMS_PER_GATEWAY = 4096
"""Requests that one gateway takes at a time; how many are let in is the gateway's to say."""


def replica_options(options: Options, size: Size) -> dict[str, Any]:
    """Returns the options of the deployment that has the servers.

    Args:
        options: What was chosen.
        size: What a replica is good for.
    """
    longest = options.longest_stream_s or size.longest_s
    scaled = options.max_replicas > options.min_replicas
    actor: dict[str, Any] = {"num_cpus": options.replica_cpus}
    if gpus := size.gpus if options.gpus is None else options.gpus:
        actor["num_gpus"] = gpus
    return {
        # What the engine has room for waits with the gateways instead, where the first replica
        # that has room takes it.
        "max_ongoing_requests": size.sequences,
        "max_queued_requests": size.queue * options.max_replicas,
        **(
            {
                "autoscaling_config": {
                    "min_replicas": options.min_replicas,
                    "max_replicas": options.max_replicas,
                    "target_ongoing_requests": size.target,
                    "upscale_delay_s": UPSCALE_DELAY_S,
                    "downscale_delay_s": downscale_delay_s(longest),
                    "look_back_period_s": LOOK_BACK_S,
                }
            }
            if scaled
            else {"num_replicas": options.min_replicas}
        ),
        "graceful_shutdown_timeout_s": longest + STOP_S,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "max_surge_percent": options.surge_percent,
        "ray_actor_options": actor,
    }


def gateway_options(options: Options, size: Size) -> dict[str, Any]:
    """Returns the options of the gateway's deployment.

    Args:
        options: What was chosen.
        size: What a replica is good for.
    """
    longest = options.longest_stream_s or size.longest_s
    return {
        "num_replicas": options.gateways,
        "max_ongoing_requests": STREAMS_PER_GATEWAY,
        # A stream that is resumed lasts longer than one that is not, at most twice as long.
        "graceful_shutdown_timeout_s": 2 * longest + STOP_S,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "max_surge_percent": options.surge_percent,
        "ray_actor_options": {"num_cpus": options.gateway_cpus},
    }


def downscale_delay_s(longest_s: int) -> int:
    """Returns the seconds of less traffic after which a replica goes.

    More than the longest stream lasts, so that what a burst has left behind is done by then, and no
    replica is stopped to be wanted again at once.
    """
    return longest_s + LOOK_BACK_S

"""Makes the Ray Serve application: a gateway, and replicas with a server each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.dependencies import require
from pipeline.manifests.build import read_build
from pipeline.rayserve.deployments import GATEWAY, REPLICAS, gateway_options, replica_options
from pipeline.rayserve.options import Options, read_options
from pipeline.rayserve.replica import Replica
from pipeline.rayserve.sizing import size_of
from pipeline.store.deployed import find_repository

PROBE_S, LOST_PROBE_S = 5.0, 0.5
"""Seconds between two questions to Ray's controller whether a replica runs, and while none does: it
answers them for the whole cluster."""
logger = logging.getLogger("ray.serve")
"""Ray writes what is said here to the replica's file, and shows it."""


def build(arguments: Mapping[str, Any]) -> Any:
    """Makes the application.

    Args:
        arguments: Fields of :class:`pipeline.rayserve.options.Options`.

    Returns:
        What ``serve.run`` takes.

    Raises:
        UsageError: An argument is wrong.
        RepositoryError: The repository does not say what the sizes need.
        MissingDependencyError: ray[serve] is not installed.
    """
    options = read_options(arguments)
    serve = require("ray.serve", "ray")
    built = read_build(find_repository(Path(options.repository)))
    size = size_of(built)
    replica = serve.deployment(Replica, name=REPLICAS, **replica_options(options, size))
    gateway = serve.deployment(
        serve.ingress()(Gateway), name=GATEWAY, **gateway_options(options, size)
    )
    servers = replica.bind(options.repository, verify=options.verify)
    return gateway.bind(options.model_dump(), options.model or built.name, servers)


class Gateway:
    """The gateway's application in a deployment of its own.

    Args:
        options: Fields of :class:`pipeline.rayserve.options.Options`.
        model: What clients call the model.
        replicas: Ray's handle of the replicas' deployment.
    """

    def __init__(self, options: Mapping[str, Any], model: str, replicas: Any) -> None:
        self._options, self._model, self._replicas = Options(**options), model, replicas

    def __serve_build_asgi_app__(self) -> Any:
        """Builds the FastAPI application; Ray calls it in the event loop that then runs it."""
        from pipeline.gateway.app import make_app
        from pipeline.gateway.desk import Desk
        from pipeline.gateway.desk import Options as Limits
        from pipeline.gateway.fleet.fleet import Fleet
        from pipeline.gateway.fleet.metrics import FleetCollector
        from pipeline.gateway.fleet.policy import Policy
        from pipeline.gateway.metrics import Metrics
        from pipeline.gateway.model import open_model
        from pipeline.gateway.opening import keys_of
        from pipeline.rayserve.engine import RayEngine

        model = open_model(Path(self._options.repository), names=(self._model,))
        limits = Limits(keys=keys_of(os.environ, self._options.key_from))
        # All replicas are one server to it: Ray knows which of them live, and which has the least
        # to do.
        policy = Policy(probe_s=PROBE_S, lost_probe_s=LOST_PROBE_S)
        fleet = Fleet(policy if self._options.resume else replace(policy, resumes=0))
        fleet.add(REPLICAS, RayEngine(self._replicas, _running(REPLICAS), REPLICAS))
        metrics = Metrics()
        metrics.registry.register(FleetCollector(fleet))
        return make_app(Desk(fleet, model, limits, say=logger.info, metrics=metrics))


def _running(deployment: str) -> Callable[[], int]:
    """Returns what counts the running replicas of a deployment of this application."""
    from ray import serve

    application = serve.get_replica_context().app_name

    last = 0

    def count() -> int:
        nonlocal last
        found = serve.status().applications.get(application)
        row = found.deployments.get(deployment) if found else None
        if row is not None:
            last = sum(n for state, n in row.replica_states.items() if state == "RUNNING")
        # While an update is being made of its config, Ray lists nothing.
        return last

    return count

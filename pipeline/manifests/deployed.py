"""The typed description of what is deployed, from which every kind is written."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.manifests.build import Build
from pipeline.manifests.values import Values

GRPC, HTTP, METRICS, GATEWAY = 8001, 8000, 8002, 9000
"""Ports inside: of the server, and of the gateway."""


@dataclass(frozen=True)
class Deployed:
    """What is deployed, and how.

    Attributes:
        build: What was built and measured.
        values: What the operator chose.
    """

    build: Build
    values: Values

    @property
    def name(self) -> str:
        """What the names of all objects begin with."""
        return self.values.name or self.build.name


def describe(build: Build, values: Values) -> Deployed:
    """Puts the description together."""
    return Deployed(build, values)

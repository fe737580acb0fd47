"""The table of what ``manifests`` can write; one row per kind.

A kind's writer is named rather than imported, as targets are: a room that writes a kind may use the
description in :mod:`pipeline.manifests.deployed`, and nothing is loaded that is not asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

    Writer = Callable[[Deployed], Mapping[str, str]]
    """Writes the files of a kind: their texts, by their path in the folder of ``--output``.

    Raises:
        UnsupportedError: What was built cannot be deployed so.
    """


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        name: What ``--kind`` calls it.
        sentence: What is written, for people who choose.
        writer: The function that writes it, as ``module:function``; it is a :data:`Writer`.
        lines: The function that says what it is made of, in the same way, for a terminal; empty
            tells how servers start and stop.
    """

    name: str
    sentence: str
    writer: str
    lines: str = ""


_LIMITS = "pipeline.monitoring.said:lines"

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "kubernetes",
            "Plain manifests: servers, gateway, volume, build Job, policies.",
            "pipeline.manifests.plain:write",
        ),
        Kind(
            "helm",
            "The same objects as a chart with values.yaml and values.schema.json.",
            "pipeline.manifests.chart:write",
        ),
        Kind(
            "compose",
            "A compose file for one machine: the server, and the gateway beside it.",
            "pipeline.manifests.single:compose",
        ),
        Kind(
            "systemd",
            "Two units for one machine: the server, and the gateway beside it.",
            "pipeline.manifests.single:systemd",
        ),
        Kind(
            "prometheus",
            "Rules that record and alert, by this build's own limits, and what scrapes it.",
            "pipeline.monitoring.rules:write",
            _LIMITS,
        ),
        Kind(
            "grafana",
            "A dashboard of the same queries, to import.",
            "pipeline.monitoring.grafana:write",
            _LIMITS,
        ),
        Kind(
            "keda",
            "A ScaledObject that asks Prometheus for waiting requests and KV cache use.",
            "pipeline.monitoring.scaling:write_keda",
            _LIMITS,
        ),
        Kind(
            "hpa",
            "The same as Kubernetes' own autoscaler, with prometheus-adapter's values.",
            "pipeline.monitoring.scaling:write_hpa",
            _LIMITS,
        ),
        Kind(
            "ray",
            "Ray Serve's config of the application, and a RayService for KubeRay.",
            "pipeline.rayserve.manifests:write",
            "pipeline.rayserve.manifests:lines",
        ),
    )
}


def kind_of(name: str) -> Kind:
    """Finds the row of a name.

    Raises:
        UsageError: There is none.
    """
    if name in KINDS:
        return KINDS[name]
    close = difflib.get_close_matches(name.lower(), KINDS, n=1)
    raise UsageError(
        f"there is no kind {name} of manifests",
        fix=f"Did you mean {close[0]}?" if close else f"Kinds: {', '.join(KINDS)}",
    )


def writer_of(name: str) -> Writer:
    """Loads the writer of a kind.

    Raises:
        UsageError: There is no such kind.
    """
    writer: Writer = _loaded(kind_of(name).writer)
    return writer


def lines_of(name: str) -> Callable[[Deployed], list[str]] | None:
    """Loads what says what a kind is made of; None where that is how servers start and stop.

    Raises:
        UsageError: There is no such kind.
    """
    place = kind_of(name).lines
    lines: Callable[[Deployed], list[str]] | None = _loaded(place) if place else None
    return lines


def _loaded(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)

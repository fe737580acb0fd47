"""What a query is, and what its placeholders stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

ENGINE = "tensorrt_llm"
"""The Triton model whose families are read."""

DEPLOYMENT, COMPONENT, BUILD = "deployment", "component", "build"
"""Labels that scraping puts on every series: the deployment's name, who publishes it, and the
digest of the repository that a server serves, as far as it is short."""
SERVER, GATEWAY = "server", "gateway"
"""Values of :data:`COMPONENT`."""

_PLACEHOLDER = re.compile("<([a-z_]+)>")


class Source(Enum):
    """Who publishes what a query reads; the value says so in a panel's description."""

    BOTH = "Servers of both targets publish it."
    CPU = "The CPU target's engine alone publishes it; a GPU's server does not."
    GPU = "A GPU's server alone publishes it; none was run by this project."
    SCRAPE = "Prometheus knows it from scraping the servers."
    GATEWAY = "The gateway publishes it, in front of either target."
    CLUSTER = "kube-state-metrics publishes it, where the cluster has that."


@dataclass(frozen=True)
class Query:
    """One expression.

    In ``expr``, ``<engine>``, ``<server>`` and ``<gateway>`` stand for the label matchers of the
    engine's model, of the whole server and of the gateway, ``<cluster>`` and ``<autoscaler>`` for
    those of kube-state-metrics' series, and ``<window>`` for the time that a rate is taken over.
    Other names in such brackets are numbers that come from the load test.

    Attributes:
        name: In the table.
        source: Who publishes its families.
        expr: PromQL with placeholders.
        legend: How a panel calls its series, with labels in double braces.
        record: The name of its recording rule; empty where it has none.
    """

    name: str
    source: Source
    expr: str
    legend: str
    record: str = ""


@dataclass(frozen=True)
class Scope:
    """What stands in the place of the placeholders.

    Attributes:
        engine: Label matchers of the engine's series.
        server: Those of all of a server's series.
        gateway: Those of the gateway's.
        recorded: Those of what recording rules made of either.
        cluster: Those of kube-state-metrics' series of pods.
        autoscaler: Those of its series of autoscalers.
        window: The time of a rate, such as ``5m``.
        numbers: The values of the other placeholders, as PromQL writes them.
    """

    engine: str
    server: str
    gateway: str
    recorded: str
    cluster: str
    autoscaler: str
    window: str
    numbers: Mapping[str, str] = field(default_factory=dict)

    def fill(self, expression: str) -> str:
        """Writes an expression with everything in its place.

        Raises:
            KeyError: It has a placeholder that nothing is known for.
        """
        known: Mapping[str, str] = {**vars(self), **self.numbers}
        return _PLACEHOLDER.sub(lambda match: known[match[1]], expression)


def rule_scope(
    deployment: str,
    namespace: str | None,
    numbers: Mapping[str, str],
    window: str = "5m",
) -> Scope:
    """Returns the scope of rules, which know their deployment.

    Args:
        deployment: Its name.
        namespace: Where it runs; None selects every namespace.
        numbers: See :class:`Scope`.
        window: The time of rates.
    """
    place = f',namespace="{namespace}"' if namespace else ""
    both = f'{DEPLOYMENT}="{deployment}"{place}'
    server = f'{both},{COMPONENT}="{SERVER}"'
    return Scope(
        engine=f'{server},model="{ENGINE}"',
        server=server,
        gateway=f'{both},{COMPONENT}="{GATEWAY}"',
        recorded=both,
        cluster=f'pod=~"{deployment}-.+"{place}',
        autoscaler=f'horizontalpodautoscaler=~"(keda-hpa-)?{deployment}"{place}',
        window=window,
        numbers=numbers,
    )


def panel_scope(deployment: str, numbers: Mapping[str, str]) -> Scope:
    """Returns the scope of a dashboard, with Grafana's variables in it.

    Args:
        deployment: The name of the deployment that it is of.
        numbers: See :class:`Scope`.
    """
    place = f'{DEPLOYMENT}="{deployment}",namespace=~"$namespace"'
    server = f'{place},{COMPONENT}="{SERVER}",pod=~"$pod"'
    return Scope(
        engine=f'{server},model=~"$model"',
        server=server,
        gateway=f'{place},{COMPONENT}="{GATEWAY}"',
        recorded=place,
        cluster='namespace=~"$namespace",pod=~"$pod"',
        autoscaler=f'namespace=~"$namespace",horizontalpodautoscaler=~"(keda-hpa-)?{deployment}"',
        window="$__rate_interval",
        numbers=numbers,
    )

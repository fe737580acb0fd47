"""Prometheus: rules that record and alert, and what it scrapes, with its operator or without."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.manifests.deployed import GATEWAY as GATEWAY_PORT
from pipeline.manifests.deployed import METRICS as METRICS_PORT
from pipeline.manifests.tree import Raw, Why, comment, manifest
from pipeline.monitoring.names import DIGEST_LABEL, PORT_NAMES, selector
from pipeline.monitoring.observed import SHORT, Observed, observe
from pipeline.monitoring.queries import BUILD, COMPONENT, DEPLOYMENT, GATEWAY, SERVER

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

_PART = re.compile(r" (?=or \(|and on )")

SCRAPED_EVERY = "15s"
"""Below a quarter of the shortest time that an alert looks at."""


def write(deployed: Deployed) -> Mapping[str, str]:
    """Writes Prometheus' files, a :data:`pipeline.manifests.kinds.Writer`.

    Args:
        deployed: What is deployed.

    Raises:
        UnsupportedError: See :func:`pipeline.monitoring.observed.observe`.
        UsageError: See there too.
    """
    observed = observe(deployed)
    head = heading(observed)
    return {
        "rules.yml": head + manifest({"groups": groups(observed)}),
        "scrape.yml": head + manifest(scrape_config(observed)),
        "prometheusrule.yaml": head + manifest(rule_object(observed)),
        "podmonitor-server.yaml": head + manifest(pod_monitor(observed, SERVER)),
        "podmonitor-gateway.yaml": head + manifest(pod_monitor(observed, GATEWAY)),
    }


def heading(observed: Observed) -> str:
    """Writes the comment at the top of a file: which build its numbers are of."""
    load = observed.figures.load
    text = (
        f"{observed.name}, build {observed.digest}. Its limits come from {load.source}: "
        f"{load.requests} requests at {load.level}, {load.tokens_per_second:.5g} tokens/s."
    )
    return "\n".join(comment(text)) + "\n"


def shown(expr: str) -> Any:
    """Returns an expression as a block of YAML, with a line for each of its parts."""
    return Raw(_PART.sub("\n", expr) + "\n")


def groups(observed: Observed) -> list[dict[str, Any]]:
    """Returns the groups of rules: what is recorded, then the alerts, which read it."""
    return [
        {
            "name": f"{observed.name}.recorded",
            "rules": [
                {"record": query.record, "expr": shown(observed.rules.fill(query.expr))}
                for query in observed.queries.values()
                if query.record
            ],
        },
        {"name": f"{observed.name}.alerts", "rules": _alerts(observed)},
    ]


def _alerts(observed: Observed) -> list[Any]:
    base = observed.deployed.values.monitoring.runbook
    return [
        Why(
            {
                "alert": alert.name,
                "expr": shown(expr),
                "for": alert.wait,
                "labels": {"severity": alert.severity, DEPLOYMENT: observed.name},
                "annotations": {
                    "summary": f"{alert.summary}.",
                    "description": (
                        f"{alert.summary}: {{{{ $value | humanize }}}}"
                        "{{ with $labels.pod }} at {{ . }}{{ end }}"
                        "{{ with $labels.server }} at {{ . }}{{ end }}."
                        f" The limit is {alert.limit.text}."
                    ),
                    "threshold": f"{alert.limit.why}.",
                    "runbook_url": f"{base}#{alert.name.lower()}",
                },
            },
            f"{alert.limit.text}: {alert.limit.why}.",
        )
        for alert, expr in observed.alerts
    ]


def scrape_config(observed: Observed) -> dict[str, Any]:
    """Returns a part of ``prometheus.yml`` for servers of known addresses."""
    places = {SERVER: METRICS_PORT, GATEWAY: GATEWAY_PORT}
    return {
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": f"{observed.name}-{component}",
                "scrape_interval": SCRAPED_EVERY,
                "static_configs": [
                    {
                        "targets": Why(
                            [f"localhost:{port}"], f"The addresses of all {component}s."
                        ),
                        "labels": {
                            "namespace": observed.namespace or "default",
                            **_labels(observed, component),
                            **({BUILD: observed.digest} if component == SERVER else {}),
                        },
                    }
                ],
                "relabel_configs": [{"source_labels": ["__address__"], "target_label": "pod"}],
            }
            for component, port in places.items()
        ],
    }


def _labels(observed: Observed, component: str) -> dict[str, str]:
    return {DEPLOYMENT: observed.name, COMPONENT: component}


def metadata(observed: Observed, name: str) -> dict[str, Any]:
    """Returns the metadata of an object.

    Args:
        observed: What is watched.
        name: The object's name.
    """
    place = {"namespace": observed.namespace} if observed.namespace else {}
    chosen = observed.deployed.values.monitoring.labels
    own = {**selector(observed.deployed, "monitoring"), **chosen}
    return {"name": name, **place, "labels": own}


def rule_object(observed: Observed) -> dict[str, Any]:
    """Returns the rules as an object of Prometheus' operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata(observed, observed.name),
        "spec": {"groups": groups(observed)},
    }


def pod_monitor(observed: Observed, component: str) -> dict[str, Any]:
    """Returns what makes Prometheus' operator scrape the pods of a component."""
    relabelings: list[dict[str, Any]] = [
        {"targetLabel": label, "replacement": value}
        for label, value in _labels(observed, component).items()
    ]
    if component == SERVER:
        short = f"(.{{{SHORT}}}).*"
        relabelings.append({"sourceLabels": [DIGEST_LABEL], "regex": short, "targetLabel": BUILD})
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(observed, f"{observed.name}-{component}"),
        "spec": {
            "selector": {"matchLabels": selector(observed.deployed, component)},
            "podMetricsEndpoints": [
                {
                    "port": PORT_NAMES[component],
                    "path": "/metrics",
                    "interval": SCRAPED_EVERY,
                    "relabelings": relabelings,
                }
            ],
        },
    }

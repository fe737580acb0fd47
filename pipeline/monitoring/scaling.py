"""Autoscalers: KEDA's object, and Kubernetes' own with what gives it the metrics.

Both ask for replicas by requests that wait and by KV blocks in use, both per replica; the larger
number counts. Waiting requests alone would take replicas away whenever none waits, however busy
all of them are. The ratio of queue time to compute time that NVIDIA's charts scale by is made of
Triton's own queue, which stays empty in front of an engine that batches in flight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.manifests.tree import Why, manifest
from pipeline.monitoring.names import workload
from pipeline.monitoring.observed import Observed, observe
from pipeline.monitoring.queries import COMPONENT, DEPLOYMENT, ENGINE, SERVER
from pipeline.monitoring.rules import heading, metadata, shown
from pipeline.monitoring.table import TABLE

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

WAITING, BUSY = "trtllm_requests_waiting", "trtllm_kv_cache_busy"
"""The metrics of pods, as Kubernetes' autoscaler asks for them."""

LOOKS_S = 15
"""Seconds between two looks of an autoscaler, Kubernetes' own."""


def write_keda(deployed: Deployed) -> Mapping[str, str]:
    """Writes KEDA's object, a :data:`pipeline.manifests.kinds.Writer`.

    Args:
        deployed: What is deployed.

    Raises:
        UnsupportedError: See :func:`pipeline.monitoring.observed.observe`.
        UsageError: See there too.
    """
    observed = observe(deployed)
    return {"scaledobject.yaml": heading(observed) + manifest(scaled_object(observed))}


def write_hpa(deployed: Deployed) -> Mapping[str, str]:
    """Writes Kubernetes' autoscaler and the rules of prometheus-adapter that it needs.

    It is a :data:`pipeline.manifests.kinds.Writer`.

    Args:
        deployed: What is deployed.

    Raises:
        UnsupportedError: See :func:`pipeline.monitoring.observed.observe`.
        UsageError: See there too.
    """
    observed = observe(deployed)
    head = heading(observed)
    return {
        "hpa.yaml": head + manifest(autoscaler(observed)),
        "prometheus-adapter-values.yaml": head + manifest(adapter_values(observed)),
    }


def scaled_object(observed: Observed) -> dict[str, Any]:
    """Returns the ScaledObject.

    Args:
        observed: What is watched.
    """
    limits, rules = observed.limits, observed.rules
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(observed, observed.name),
        "spec": {
            "scaleTargetRef": workload(observed.deployed),
            "minReplicaCount": observed.least,
            "maxReplicaCount": observed.most,
            "pollingInterval": LOOKS_S,
            "fallback": Why(
                {
                    "failureThreshold": 3,
                    "replicas": observed.least,
                    "behavior": "currentReplicasIfHigher",
                },
                "Without Prometheus nobody knows the load, so none of the replicas is taken away.",
            ),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(observed)}},
            "triggers": [
                _trigger(
                    observed,
                    "waiting",
                    f"sum({rules.fill(TABLE['requests_waiting'].expr)})",
                    limits.waiting.promql,
                    f"{limits.waiting.text} a replica: {limits.waiting.why}.",
                ),
                _trigger(
                    observed,
                    "kv-cache",
                    f"sum({rules.fill(TABLE['kv_busy'].expr)})",
                    limits.busy.promql,
                    f"{limits.busy.text}, {limits.busy.why}.",
                ),
            ],
        },
    }


def _trigger(observed: Observed, name: str, query: str, threshold: str, why: str) -> Why:
    return Why(
        {
            "type": "prometheus",
            "name": name,
            # The sum over all replicas, which the autoscaler divides by how many there are.
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": observed.deployed.values.monitoring.prometheus,
                "query": shown(query),
                "threshold": threshold,
                # No series is no load that is known to be nothing.
                "ignoreNullValues": "false",
            },
        },
        why,
    )


def _behavior(observed: Observed) -> dict[str, Any]:
    down = observed.limits.down_s
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": Why(round(down.value), f"{down.why}."),
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }


def autoscaler(observed: Observed) -> dict[str, Any]:
    """Returns the HorizontalPodAutoscaler.

    Args:
        observed: What is watched.
    """
    limits = observed.limits
    wanted = (
        (WAITING, f"{limits.waiting.value:.0f}", f"{limits.waiting.why}."),
        (BUSY, f"{limits.busy.value * 1000:.0f}m", f"{limits.busy.text}, {limits.busy.why}."),
    )
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(observed, observed.name),
        "spec": {
            "scaleTargetRef": workload(observed.deployed),
            "minReplicas": observed.least,
            "maxReplicas": observed.most,
            "metrics": [
                Why(
                    {
                        "type": "Pods",
                        "pods": {
                            "metric": {"name": name},
                            "target": {"type": "AverageValue", "averageValue": value},
                        },
                    },
                    why,
                )
                for name, value, why in wanted
            ],
            "behavior": _behavior(observed),
        },
    }


def adapter_values(observed: Observed) -> dict[str, Any]:
    """Returns values of prometheus-adapter's chart, which make two metrics of pods.

    Args:
        observed: What is watched.
    """
    of = f'{DEPLOYMENT}="{observed.name}",{COMPONENT}="{SERVER}",model="{ENGINE}"'
    requests, blocks = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"

    def summed(kind: str) -> str:
        matched = f'kv_cache_block_type="{kind}",{of},<<.LabelMatchers>>'
        return f"sum by (<<.GroupBy>>) (<<.Series>>{{{matched}}})"

    full = observed.limits.full_blocks
    return {
        "rules": {
            "custom": [
                _adapted(
                    f'{requests}{{request_type="waiting",{of}}}',
                    WAITING,
                    "sum by (<<.GroupBy>>) (<<.Series>>"
                    f'{{request_type="waiting",{of},<<.LabelMatchers>>}})',
                ),
                Why(
                    _adapted(
                        f'{blocks}{{kv_cache_block_type="used",{of}}}',
                        BUSY,
                        f"{summed('used')} / clamp_max({summed('max')}, {full.promql})",
                    ),
                    f"{full.text}: {full.why}.",
                ),
            ]
        }
    }


def _adapted(series: str, name: str, query: str) -> dict[str, Any]:
    return {
        "seriesQuery": series,
        "resources": {"overrides": {label: {"resource": label} for label in ("namespace", "pod")}},
        "name": {"as": name},
        "metricsQuery": query,
    }

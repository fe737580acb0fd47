"""Autoscalers: KEDA's object, and Kubernetes' own with what gives it the metrics.

Both ask for replicas by requests that wait, by KV blocks in use and by places of the batch in use,
each per replica; the largest number counts. Waiting requests alone would take replicas away
whenever none waits, however busy all of them are. The ratio of queue time to compute time that
NVIDIA's charts scale by is made of Triton's own queue, which stays empty in front of an engine that
batches in flight.
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
from pipeline.monitoring.thresholds import Threshold

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

WAITING, CACHE, BATCH = (
    f"trtllm_{name}" for name in ("requests_waiting", "kv_cache_used", "batch_fill")
)
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
    limits = observed.limits
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
                _trigger(observed, name, TABLE[query].expr, limit)
                for name, query, limit in (
                    ("waiting", "requests_waiting", limits.waiting),
                    ("kv-cache", "kv_used", limits.busy),
                    ("batch", "batch_fill", limits.busy),
                )
            ],
        },
    }


def _trigger(observed: Observed, name: str, expr: str, limit: Threshold) -> Why:
    return Why(
        {
            "type": "prometheus",
            "name": name,
            # The sum over all replicas, which the autoscaler divides by how many there are.
            "metricType": "AverageValue",
            "metadata": {
                "serverAddress": observed.deployed.values.monitoring.prometheus,
                "query": shown(f"sum({observed.rules.fill(expr)})"),
                "threshold": limit.promql,
                # No series is no load that is known to be nothing.
                "ignoreNullValues": "false",
            },
        },
        _reason(limit),
    )


def _reason(limit: Threshold) -> str:
    return f"{limit.text} a replica: {limit.why}."


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
        (WAITING, f"{limits.waiting.value:.0f}", limits.waiting),
        (CACHE, f"{limits.busy.value * 1000:.0f}m", limits.busy),
        (BATCH, f"{limits.busy.value * 1000:.0f}m", limits.busy),
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
                    _reason(limit),
                )
                for name, value, limit in wanted
            ],
            "behavior": _behavior(observed),
        },
    }


def adapter_values(observed: Observed) -> dict[str, Any]:
    """Returns values of prometheus-adapter's chart, which make three metrics of pods.

    Args:
        observed: What is watched.
    """
    of = f'{DEPLOYMENT}="{observed.name}",{COMPONENT}="{SERVER}",model="{ENGINE}"'
    requests = ("nv_trt_llm_request_metrics", "request_type")
    blocks = ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type")

    def adapted(name: str, family: tuple[str, str], value: str, whole: str = "") -> dict[str, Any]:
        summed = [
            f'sum by (<<.GroupBy>>) (<<.Series>>{{{family[1]}="{part}",{of},<<.LabelMatchers>>}})'
            for part in (value, whole)
            if part
        ]
        return {
            "seriesQuery": f'{family[0]}{{{family[1]}="{value}",{of}}}',
            "resources": {
                "overrides": {label: {"resource": label} for label in ("namespace", "pod")}
            },
            "name": {"as": name},
            "metricsQuery": " / ".join(summed),
        }

    return {
        "rules": {
            "custom": [
                adapted(WAITING, requests, "waiting"),
                adapted(CACHE, blocks, "used", "max"),
                adapted(BATCH, requests, "scheduled", "max"),
            ]
        }
    }

"""Objects for a cluster, held to definitions that were written down from those of their makers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from pipeline.manifests.objects.every import documents
from pipeline.manifests.tree import plain
from pipeline.monitoring import rules, scaling
from pipeline.monitoring.observed import Observed

from ...conftest import PROJECT

jsonschema = pytest.importorskip("jsonschema", reason="check-jsonschema brings it")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="it has Kubernetes' own schemas"
)

SCHEMAS = {
    path.stem: json.loads(path.read_text())
    for path in (PROJECT / "tests" / "data" / "crds").glob("*.json")
}
KUBERNETES = ("1.30", "1.34", "1.37")


def written(observed: Observed) -> dict[str, Any]:
    """The objects of all kinds by their file."""
    texts = {
        **rules.write(observed.deployed),
        **scaling.write_keda(observed.deployed),
        **scaling.write_hpa(observed.deployed),
    }
    return {name: yaml.safe_load(text) for name, text in texts.items()}


def pods(observed: Observed) -> Iterator[dict[str, Any]]:
    """The pod templates of the deployment's own manifests."""
    for document in documents(observed.deployed):
        spec = plain(document.tree).get("spec", {})
        if "template" in spec:
            yield spec["template"]
        elif "leaderWorkerTemplate" in spec:
            yield spec["leaderWorkerTemplate"]["leaderTemplate"]


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        ("prometheusrule.yaml", "prometheusrule"),
        ("podmonitor-server.yaml", "podmonitor"),
        ("podmonitor-gateway.yaml", "podmonitor"),
        ("scaledobject.yaml", "scaledobject"),
    ],
)
def test_objects_are_what_their_definitions_ask_for(
    cpu: Observed, gpu: Observed, file: str, schema: str
) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMAS[schema])
    for observed in (cpu, gpu):
        made = written(observed)[file]
        assert [error.message for error in validator.iter_errors(made)] == []
        wrong = copy.deepcopy(made)
        wrong["spec"]["selectr"] = {}
        assert not validator.is_valid(wrong)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_autoscaler(cpu: Observed, version: str) -> None:
    made = written(cpu)["hpa.yaml"]
    kubernetes_validate.validate(made, version, strict=True)
    wrong = copy.deepcopy(made)
    wrong["spec"]["metrics"][0]["pods"]["target"]["averageValues"] = "1"
    with pytest.raises(kubernetes_validate.ValidationError, match="averageValues"):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("component", ["server", "gateway"])
def test_a_pod_monitor_finds_its_pods_and_their_port(cpu: Observed, component: str) -> None:
    spec = written(cpu)[f"podmonitor-{component}.yaml"]["spec"]
    found = [
        pod
        for pod in pods(cpu)
        if spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    ]
    assert len(found) == 1
    (endpoint,) = spec["podMetricsEndpoints"]
    ports = [
        port["name"]
        for container in found[0]["spec"]["containers"]
        for port in container.get("ports", ())
    ]
    assert endpoint["port"] in ports
    targets = {one["targetLabel"]: one for one in endpoint["relabelings"]}
    assert targets["deployment"]["replacement"] == "story"
    assert targets["component"]["replacement"] == component
    if component == "server":
        # Prometheus writes an underscore for what a label's name may not have.
        (label,) = targets["build"]["sourceLabels"]
        names = {
            "__meta_kubernetes_pod_annotation_" + name.replace("-", "_").replace("/", "_"): value
            for name, value in found[0]["metadata"]["annotations"].items()
        }
        assert names[label] == cpu.deployed.build.digest


def test_autoscalers_scale_what_the_manifests_make(cpu: Observed) -> None:
    one = cpu.deployed
    groups = replace(
        one,
        layout=replace(one.layout, gpus=8, pods=2),
        contained=replace(one.contained, gpus=16, spread=("mpirun", "--host")),
    )
    for observed in (cpu, replace(cpu, deployed=groups)):
        objects = [plain(document.tree) for document in documents(observed.deployed)]
        references = [
            {key: found[key] for key in ("apiVersion", "kind")}
            | {"name": found["metadata"]["name"]}
            for found in objects
        ]
        made = written(observed)
        for file in ("hpa.yaml", "scaledobject.yaml"):
            assert references.count(made[file]["spec"]["scaleTargetRef"]) == 1


def test_both_autoscalers_ask_for_the_same(cpu: Observed) -> None:
    made = written(cpu)
    keda, own = made["scaledobject.yaml"]["spec"], made["hpa.yaml"]["spec"]
    asked = [float(trigger["metadata"]["threshold"]) for trigger in keda["triggers"]]
    targets = [metric["pods"]["target"]["averageValue"] for metric in own["metrics"]]
    assert asked == [4, 0.7, 0.7]
    assert targets == ["4", "700m", "700m"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == own["behavior"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (2, 8)
    assert (own["minReplicas"], own["maxReplicas"]) == (2, 8)
    # What the adapter serves is what the autoscaler asks for.
    served = made["prometheus-adapter-values.yaml"]["rules"]["custom"]
    assert [rule["name"]["as"] for rule in served] == [
        metric["pods"]["metric"]["name"] for metric in own["metrics"]
    ]


def test_every_limit_stands_beside_its_figure(cpu: Observed) -> None:
    said = " ".join(
        line.strip().removeprefix("# ")
        for text in (
            *rules.write(cpu.deployed).values(),
            *scaling.write_keda(cpu.deployed).values(),
            *scaling.write_hpa(cpu.deployed).values(),
        )
        for line in text.splitlines()
        if line.strip().startswith("#")
    )
    for limit in vars(cpu.limits).values():
        assert limit.why in said, limit

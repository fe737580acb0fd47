"""Every expression is PromQL, and reads families and labels that somebody publishes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.gateway.fleet.counts import Counts, ReplicaState
from pipeline.gateway.fleet.metrics import FleetCollector
from pipeline.gateway.metrics import Metrics
from pipeline.manifests.tree import plain
from pipeline.monitoring.grafana import dashboard
from pipeline.monitoring.observed import Observed
from pipeline.monitoring.queries import Source
from pipeline.monitoring.rules import groups
from pipeline.monitoring.scaling import adapter_values, scaled_object
from pipeline.monitoring.table import TABLE

from ...conftest import PROJECT

# Labels that scraping adds, and those of kube-state-metrics' and Triton's own families, with the
# pages where they are documented.
SCRAPED = {"namespace", "pod", "deployment", "component", "build", "container"}
OTHERS = {
    # https://docs.nvidia.com/deeplearning/triton-inference-server/ user_guide/metrics
    "nv_inference_request_success": {"model", "version"},
    "nv_inference_request_failure": {"model", "version", "reason"},
    "nv_cpu_memory_used_bytes": set(),
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
    "nv_gpu_utilization": {"gpu_uuid"},
    # https://github.com/kubernetes/kube-state-metrics docs/metrics
    "kube_pod_status_ready": {"condition", "uid"},
    "kube_pod_container_status_restarts_total": {"container", "uid"},
    "kube_horizontalpodautoscaler_status_desired_replicas": {"horizontalpodautoscaler"},
    # Prometheus makes it of every scrape.
    "up": set(),
}
GPU_ALONE = {"nv_gpu_memory_used_bytes", "nv_gpu_utilization"}


def page_families() -> dict[str, tuple[set[str], set[str], bool]]:
    """Of docs/metrics.md: labels, the label's values, and whether NVIDIA has the family too."""
    found = {}
    for line in (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `nv_"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            name, label = cells[0].strip("`"), cells[2].strip("`")
            values = set(re.findall(r"`([^`]+)`", cells[3]))
            found[name] = (({label} if label else set()), values, cells[5] == "yes")
            if cells[1] == "histogram":
                for part, more in (("_bucket", {"le"}), ("_sum", set()), ("_count", set())):
                    labels = {label} | more if label else more
                    found[name + part] = (labels, values, cells[5] == "yes")
    return found


class SomeFleet:
    """What a fleet counts: one of each kind."""

    counts = Counts(
        Counter({("resumed", "continued"): 1}), Counter({("s", "load"): 1}), 1, 0.5, 0.5
    )

    def replicas(self) -> list[ReplicaState]:
        return [ReplicaState("s", ready=True, draining=False, streams=1, requests=1.0, kv=0.5)]


def gateway_families() -> dict[str, set[str]]:
    """What the gateway publishes with which labels, as Prometheus' parser reads it."""
    metrics = Metrics()
    metrics.answered("chat", "200", 1.0)
    metrics.registry.register(FleetCollector(SomeFleet()))  # type: ignore[arg-type]
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panel_expressions(observed: Observed) -> Iterator[str]:
    variables = {
        "$__rate_interval": "1m",
        "$namespace": ".+",
        "$model": ".+",
        "$pod": ".+",
        "$price": "1.5",
    }
    made = dashboard(observed)
    texts = [target["expr"] for panel in made["panels"] for target in panel.get("targets", ())]
    texts += [mark["expr"] for mark in made["annotations"]["list"]]
    for text in texts:
        for name, value in variables.items():
            text = text.replace(name, value)  # noqa: PLW2901
        yield text


def rule_expressions(observed: Observed) -> Iterator[tuple[str, str]]:
    for group in plain(groups(observed)):
        for rule in group["rules"]:
            yield rule.get("record", ""), rule["expr"]


def all_expressions(observed: Observed) -> list[str]:
    found = [*panel_expressions(observed), *(expr for _, expr in rule_expressions(observed))]
    found += [
        trigger["metadata"]["query"]
        for trigger in plain(scaled_object(observed))["spec"]["triggers"]
    ]
    for rule in plain(adapter_values(observed))["rules"]["custom"]:
        family = rule["seriesQuery"].partition("{")[0]
        query = rule["metricsQuery"].replace("<<.Series>>", family)
        query = query.replace("<<.LabelMatchers>>", 'namespace="llm",pod=~"a|b"')
        found += [rule["seriesQuery"], query.replace("<<.GroupBy>>", "pod")]
    return found


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    found = []

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    yield from found


@pytest.fixture(params=["cpu", "gpu"])
def observed(request: pytest.FixtureRequest) -> Observed:
    found: Observed = request.getfixturevalue(request.param)
    return found


def test_every_expression_parses_and_nothing_is_left_open(observed: Observed) -> None:
    expressions = all_expressions(observed)
    assert len(expressions) > 80
    for expression in expressions:
        assert not re.search(r"<[a-z_]+>", expression), expression
        assert not expression.count("$"), expression
        promql_parser.parse(expression)


def test_every_family_and_label_is_published_by_somebody(observed: Observed) -> None:
    page, gateway = page_families(), gateway_families()
    recorded = {name for name, _ in rule_expressions(observed) if name}
    for expression in all_expressions(observed):
        for selector in selectors(expression):
            family, matched = selector.name, selector.matchers.matchers
            labels = {matcher.name for matcher in matched}
            if ":" in family:
                assert family in recorded, family
                assert labels <= {"deployment", "namespace"}
                continue
            if family in page:
                own, values, _ = page[family]
                own = own | {"model", "version"}
                for matcher in matched:
                    if matcher.name in own and matcher.name != "model":
                        assert set(matcher.value.split("|")) <= values, expression
            elif family in gateway:
                own = gateway[family]
            else:
                assert family in OTHERS, f"nobody publishes {family}: {expression}"
                own = OTHERS[family]
            assert labels <= own | SCRAPED, (family, labels)


def test_each_query_says_who_publishes_it() -> None:
    page, gateway = page_families(), gateway_families()
    for query in TABLE.values():
        bare = re.sub(r"<window>", "5m", query.expr).replace("$price", "1")
        bare = re.sub(r"(\{|,)<[a-z_]+>", r"\1", bare).replace(",}", "}")
        families = {selector.name for selector in selectors(re.sub(r"<[a-z_]+>", "1", bare))}
        kinds = set()
        for family in families:
            if family in page:
                kinds.add(Source.BOTH if page[family][2] else Source.CPU)
            elif family in gateway:
                kinds.add(Source.GATEWAY)
            elif family.startswith("kube_"):
                kinds.add(Source.CLUSTER)
            elif family == "up":
                kinds.add(Source.SCRAPE)
            else:
                kinds.add(Source.GPU if family in GPU_ALONE else Source.BOTH)
        # A query of several families is answered where the rarest of them is.
        rare = (Source.CPU, Source.GPU, Source.GATEWAY, Source.CLUSTER, Source.BOTH, Source.SCRAPE)
        assert query.source is next(kind for kind in rare if kind in kinds), query.name


def test_a_gpus_dashboard_and_rules_ask_for_nothing_that_the_cpu_alone_has(gpu: Observed) -> None:
    cpus = {name for name, (_, _, nvidias) in page_families().items() if not nvidias}
    for expression in all_expressions(gpu):
        assert cpus.isdisjoint(selector.name for selector in selectors(expression)), expression
    assert any("nv_gpu_memory_used_bytes" in expression for expression in all_expressions(gpu))


def test_tritons_own_queue_is_no_signal(observed: Observed) -> None:
    for expression in all_expressions(observed):
        assert "queue_duration" not in expression
        assert "queue_compute" not in expression
    assert "queue_duration" not in json.dumps(dashboard(observed))


def test_every_alert_has_its_part_of_the_runbook(observed: Observed) -> None:
    page = (PROJECT / "docs" / "operate.md").read_text(encoding="utf-8")
    headings = {line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")}
    for group in plain(groups(observed)):
        for rule in group["rules"]:
            if name := rule.get("alert"):
                assert name in headings
                assert rule["annotations"]["runbook_url"] == f"docs/operate.md#{name.lower()}"

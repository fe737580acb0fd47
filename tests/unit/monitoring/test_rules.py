"""The rules in Prometheus' own tool: it takes them, and alerts fire on what they are for alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.manifests.tree import plain
from pipeline.monitoring.observed import Observed
from pipeline.monitoring.rules import groups, write

from ...conftest import PROJECT

UNPACKED = PROJECT / "build" / "operate" / "prometheus" / "usr" / "bin"
"""Where make watch-proof puts Debian's package."""


def promtool() -> str:
    found = shutil.which("promtool", path=str(UNPACKED)) or shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not here; make watch-proof fetches it")
    return found


SERVER = 'deployment="story",namespace="llm",component="server",pod="a"'
ENGINE = f'{SERVER},model="tensorrt_llm",version="1"'
OTHER = ENGINE.replace('pod="a"', 'pod="b"')
GATEWAY = 'deployment="story",namespace="llm",component="gateway",pod="g"'
OTHER_GATEWAY = GATEWAY.replace('pod="g"', 'pod="h"')
UP = {f"up{{{SERVER}}}": "1x200"}

# A series that counts up by so much a scrape of 15 s, and one that stands.
STEPS = f'nv_trt_llm_general_metrics{{general_type="iteration_counter",{ENGINE}}}'
ACTIVE = f'nv_trt_llm_request_metrics{{request_type="active",{ENGINE}}}'


def level(
    family: str, label: str, value: str, number: float, engine: str = ENGINE
) -> dict[str, str]:
    return {f'nv_trt_llm_{family}{{{label}="{value}",{engine}}}': f"{number}x200"}


def waiting(number: float) -> dict[str, str]:
    return level("request_metrics", "request_type", "waiting", number)


def free(number: float) -> dict[str, str]:
    return level("kv_cache_block_metrics", "kv_cache_block_type", "free", number)


def reserved(number: float) -> dict[str, str]:
    return {
        **level("kv_cache_block_metrics", "kv_cache_block_type", "max", 1000),
        f"nv_llm_kv_cache_reserved_blocks{{{ENGINE}}}": f"{number}x200",
    }


def times(family: str, labels: str, bounds: dict[str, int]) -> dict[str, str]:
    """A histogram that grows by so many a scrape up to each bound."""
    return {f'{family}_bucket{{le="{le}",{labels}}}': f"0+{by}x200" for le, by in bounds.items()}


def counted(family: str, labels: str, by: float) -> dict[str, str]:
    return {f"{family}{{{labels}}}": f"0+{by}x200"}


def ended(failed: float, finished: float) -> dict[str, str]:
    return {
        **counted("nv_llm_requests_total", f'outcome="failed",{ENGINE}', failed),
        **counted("nv_llm_requests_total", f'outcome="finished",{ENGINE}', finished),
        **counted("nv_llm_requests_total", f'outcome="refused",{ENGINE}', 50),
        **counted("nv_llm_requests_total", f'outcome="cancelled",{ENGINE}', 50),
    }


def answers(code: str, by: float) -> dict[str, str]:
    return counted("llm_requests_total", f'endpoint="chat",code="{code}",{GATEWAY}', by)


def busy(by: float, engine: str) -> dict[str, str]:
    return counted("nv_inference_request_success", engine, by)


def no_work(engine: str = ENGINE) -> dict[str, str]:
    return level("request_metrics", "request_type", "active", 0, engine)


def resumed(values: str) -> dict[str, str]:
    return {f'llm_resumes_total{{outcome="resumed",how="continued",{GATEWAY}}}': values}


BOTH_UP = {**UP, f"up{{{SERVER}}}".replace('pod="a"', 'pod="b"'): "1x200"}


@dataclass(frozen=True)
class Case:
    """Series of fifty minutes, and whether an alert fires at half of them.

    Attributes:
        alert: Its name.
        about: What happens.
        series: Values by series, in promtool's notation, a scrape every 15 s.
        fires: Whether it does.
        at: When it is looked at.
    """

    alert: str
    about: str
    series: dict[str, str]
    fires: bool = True
    at: str = "25m"


CASES = (
    Case("TrtllmNoServer", "none answers", {f"up{{{SERVER}}}": "0x200"}),
    Case("TrtllmNoServer", "none is known", {"unrelated": "1x200"}),
    Case("TrtllmNoServer", "one of two answers", {**UP, 'up{pod="b"}': "0x200"}, fires=False),
    Case("TrtllmNoServer", "gone for a minute", {f"up{{{SERVER}}}": "1x95 0x200"}, fires=False),
    Case("TrtllmNoServer", "another deployment's", {'up{deployment="other"}': "1x200"}),
    Case("TrtllmNotReady", "down", {f"up{{{SERVER}}}": "0x200"}),
    Case("TrtllmNotReady", "up", UP, fires=False),
    Case("TrtllmNotReady", "down for nine minutes", {f"up{{{SERVER}}}": "1x63 0x200"}, fires=False),
    Case(
        "TrtllmNotReady",
        "up, and not ready for Kubernetes",
        {
            **UP,
            'kube_pod_status_ready{condition="false",pod="story-x",namespace="llm"}': "1x200",
        },
    ),
    Case(
        "TrtllmNotReady",
        "somebody else's pod",
        {**UP, 'kube_pod_status_ready{condition="false",pod="other",namespace="llm"}': "1x200"},
        fires=False,
    ),
    Case(
        "TrtllmNotReady",
        "not ready for the gateway",
        {**UP, f'llm_server_ready{{server="a:8001",{GATEWAY}}}': "0x200"},
    ),
    Case(
        "TrtllmNotReady",
        "not ready for one of two gateways",
        {
            **UP,
            f'llm_server_ready{{server="a:8001",{GATEWAY}}}': "0x200",
            f'llm_server_ready{{server="a:8001",{OTHER_GATEWAY}}}': "1x200",
        },
        fires=False,
    ),
    Case("TrtllmRequestsWaiting", "five", waiting(5)),
    Case("TrtllmRequestsWaiting", "four, which is the limit", waiting(4), fires=False),
    Case(
        "TrtllmRequestsWaiting",
        "many, for three minutes",
        {next(iter(waiting(9))): "0x87 9x200"},
        fires=False,
    ),
    Case(
        "TrtllmFirstTokenSlow",
        "six of 100 take more than 500 ms, in the engine",
        times(
            "nv_llm_time_to_first_token_ms",
            ENGINE,
            {"200": 50, "500": 94, "1000": 100, "+Inf": 100},
        ),
    ),
    Case(
        "TrtllmFirstTokenSlow",
        "four of 100 take more than 500 ms",
        times(
            "nv_llm_time_to_first_token_ms",
            ENGINE,
            {"200": 50, "500": 96, "1000": 100, "+Inf": 100},
        ),
        fires=False,
    ),
    Case(
        "TrtllmFirstTokenSlow",
        "six of 100 take more than half a second, at the gateway",
        times("llm_ttft_seconds", GATEWAY, {"0.2": 50, "0.5": 94, "1.0": 100, "+Inf": 100}),
    ),
    Case(
        "TrtllmFirstTokenSlow",
        "four of 100 take more than half a second",
        times("llm_ttft_seconds", GATEWAY, {"0.2": 50, "0.5": 96, "1.0": 100, "+Inf": 100}),
        fires=False,
    ),
    Case(
        "TrtllmTokensSlow",
        "six of 100 requests take more than 20 ms a token",
        times("nv_llm_time_per_output_token_ms", ENGINE, {"20": 94, "50": 100, "+Inf": 100}),
    ),
    Case(
        "TrtllmTokensSlow",
        "four of 100 requests do",
        times("nv_llm_time_per_output_token_ms", ENGINE, {"20": 96, "50": 100, "+Inf": 100}),
        fires=False,
    ),
    Case("TrtllmKvCacheNearlyFull", "23 free", free(23)),
    Case("TrtllmKvCacheNearlyFull", "24 free, which is the limit", free(24), fires=False),
    Case("TrtllmKvCacheNearlyFull", "977 of 1000 promised", reserved(977)),
    Case("TrtllmKvCacheNearlyFull", "976 of 1000 promised", reserved(976), fires=False),
    Case(
        "TrtllmPreemptions",
        "one is left out all the time",
        level("inflight_batcher_metrics", "inflight_batcher_specific_metric", "paused_requests", 1),
    ),
    Case(
        "TrtllmPreemptions",
        "left out every few scrapes",
        counted("nv_llm_preemptions_total", ENGINE, 0.1),
    ),
    Case(
        "TrtllmPreemptions",
        "once, and never again",
        {f"nv_llm_preemptions_total{{{ENGINE}}}": "0x60 1x200"},
        fires=False,
    ),
    Case("TrtllmErrors", "four of 100 in the engine", ended(4, 96)),
    Case("TrtllmErrors", "two of 100, and many that were refused", ended(2, 98), fires=False),
    Case("TrtllmErrors", "four of 100 at the gateway", {**answers("500", 4), **answers("200", 96)}),
    Case(
        "TrtllmErrors",
        "clients that are wrong or go",
        {**answers("400", 50), **answers("499", 50), **answers("429", 50), **answers("200", 50)},
        fires=False,
    ),
    Case("TrtllmRestarts", "counts from 0 again", {STEPS: "0+50x50 0+50x200"}),
    Case("TrtllmRestarts", "counts on", {STEPS: "0+50x200"}, fires=False),
    Case("TrtllmRestarts", "stands", {STEPS: "77x200"}, fires=False),
    Case(
        "TrtllmNoTraffic",
        "one of two gets none",
        {**BOTH_UP, **busy(0, ENGINE), **no_work(), **busy(1, OTHER), **no_work(OTHER)},
    ),
    Case(
        "TrtllmNoTraffic",
        "nobody asks anything",
        {**BOTH_UP, **busy(0, ENGINE), **no_work(), **busy(0, OTHER), **no_work(OTHER)},
        fires=False,
    ),
    Case(
        "TrtllmNoTraffic",
        "it works on one that takes long",
        {
            **BOTH_UP,
            **busy(0, ENGINE),
            **level("request_metrics", "request_type", "active", 1),
            **busy(1, OTHER),
            **no_work(OTHER),
        },
        fires=False,
    ),
    Case(
        "TrtllmNoTraffic",
        "three requests in ten minutes may all go to the other",
        {**BOTH_UP, **busy(0, ENGINE), **no_work(), **busy(0.075, OTHER), **no_work(OTHER)},
        fires=False,
    ),
    Case(
        "TrtllmNoTraffic",
        "the gateway has requests and the servers have none",
        {**UP, **answers("503", 1), **busy(0, ENGINE), **no_work()},
    ),
    Case(
        "TrtllmNoTraffic",
        "the gateway has requests and the servers too",
        {**UP, **answers("200", 1), **busy(1, ENGINE)},
        fires=False,
    ),
    Case(
        "TrtllmEngineStalled",
        "three requests and no step",
        {STEPS: "0+9x40 360x200", ACTIVE: "3x200"},
    ),
    Case(
        "TrtllmEngineStalled",
        "three requests and steps",
        {STEPS: "0+9x200", ACTIVE: "3x200"},
        fires=False,
    ),
    Case("TrtllmEngineStalled", "no request", {STEPS: "360x200", ACTIVE: "0x200"}, fires=False),
    Case(
        "TrtllmEngineStalled",
        "a request now and then, and no step between",
        {STEPS: "360x200", ACTIVE: "0 0 1 0 0 1 0 0" + " 1 0 0" * 60},
        fires=False,
    ),
    Case("TrtllmResumes", "36 streams in ten minutes", resumed("0+0.9x200")),
    Case("TrtllmResumes", "30 streams in ten minutes", resumed("0+0.75x200"), fires=False),
    Case("TrtllmResumes", "the first 33 at once", resumed("_x90 33x100")),
    Case("TrtllmResumes", "33 long ago", resumed("33x200"), fires=False),
    Case(
        "TrtllmResumes",
        "many that did not go on",
        counted("llm_resumes_total", f'outcome="given_up",how="none",{GATEWAY}', 9),
        fires=False,
    ),
)


def checked(observed: Observed, folder: Path) -> Path:
    for name, text in write(observed.deployed).items():
        (folder / name).write_text(text, encoding="utf-8")
    rules = folder / "rules.yml"
    done = subprocess.run(
        [promtool(), "check", "rules", "--lint=all", "--lint-fatal", str(rules)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    written = sum(len(group["rules"]) for group in plain(groups(observed)))
    assert f"{written} rules found" in done.stdout
    return rules


def run(folder: Path, tests: list[dict[str, object]]) -> None:
    file = folder / "tests.yml"
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = subprocess.run(
        [promtool(), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def series(case: Case) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in case.series.items()]


@pytest.mark.parametrize("which", ["cpu", "gpu"])
def test_promtool_takes_the_rules(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checked(request.getfixturevalue(which), tmp_path)


def test_each_alert_fires_on_what_it_is_for_and_not_beside_it(
    cpu: Observed, tmp_path: Path
) -> None:
    checked(cpu, tmp_path)
    names = {alert.name for alert, _ in cpu.alerts}
    for fires in (True, False):
        assert {case.alert for case in CASES if case.fires is fires} == names
    run(
        tmp_path,
        [
            {
                "name": f"{case.alert}: {case.about}",
                "interval": "15s",
                "input_series": series(case),
                "promql_expr_test": [
                    {
                        "expr": f'group(ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
                        "eval_time": case.at,
                        "exp_samples": [{"value": 1}] if case.fires else [],
                    }
                ],
            }
            for case in CASES
        ],
    )


def test_an_alert_says_what_where_and_how_much(cpu: Observed, tmp_path: Path) -> None:
    checked(cpu, tmp_path)
    run(
        tmp_path,
        [
            {
                "interval": "15s",
                "input_series": [
                    {"series": name, "values": values} for name, values in waiting(5).items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": "25m",
                        "alertname": "TrtllmRequestsWaiting",
                        "exp_alerts": [
                            {
                                "exp_labels": {
                                    "severity": "warning",
                                    "deployment": "story",
                                    "namespace": "llm",
                                    "pod": "a",
                                },
                                "exp_annotations": {
                                    "summary": "More requests wait at a server than it can answer "
                                    "in time.",
                                    "description": "More requests wait at a server than it can "
                                    "answer in time: 5 at a. The limit is 4 requests.",
                                    "threshold": f"{cpu.limits.waiting.why}.",
                                    "runbook_url": "docs/operate.md#trtllmrequestswaiting",
                                },
                            }
                        ],
                    }
                ],
            }
        ],
    )


def test_recorded_numbers_are_those_of_a_hand_calculation(cpu: Observed, tmp_path: Path) -> None:
    checked(cpu, tmp_path)
    blocks, requests = (
        ("kv_cache_block_metrics", "kv_cache_block_type"),
        ("request_metrics", "request_type"),
    )
    given = {
        **level(*blocks, "used", 96),
        **level(*blocks, "max", 384),
        **level(*requests, "scheduled", 8),
        **level(*requests, "max", 32),
        # 100 a scrape of 15 s.
        **counted("nv_inference_request_success", ENGINE, 100),
        **answers("200", 100),
    }
    pod = '{deployment="story",namespace="llm",pod="a"}'
    expected = {
        f"pod:trtllm_kv_cache_used:ratio{pod}": 0.25,
        f"pod:trtllm_batch_fill:ratio{pod}": 0.25,
        f"pod:trtllm_requests_answered:rate{pod}": 100 / 15,
        # Nothing failed, which is not nothing.
        'deployment:trtllm_gateway_errors:ratio{deployment="story",namespace="llm"}': 0,
    }
    run(
        tmp_path,
        [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": given[name]} for name in given],
                "promql_expr_test": [
                    {
                        "expr": labels.partition("{")[0],
                        "eval_time": "10m",
                        "exp_samples": [{"labels": labels, "value": value}],
                    }
                    for labels, value in expected.items()
                ],
            }
        ],
    )


def test_a_dashboards_json_has_no_alert_of_another_name(cpu: Observed) -> None:
    assert json.dumps(plain(groups(cpu))).count('"alert"') == len(cpu.alerts) == 12

"""The alerts: what each looks at, its limit and where the limit comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.monitoring.queries import DEPLOYMENT, Source
from pipeline.monitoring.thresholds import LEAST_STALL_S, QUIET_S, Threshold, Thresholds

_POD = f"namespace, {DEPLOYMENT}, pod"
_DEPLOYMENT = f"namespace, {DEPLOYMENT}"
_STEPS = 'nv_trt_llm_general_metrics{general_type="iteration_counter",<engine>}'
_ACTIVE = 'nv_trt_llm_request_metrics{request_type="active",<engine>}'
_ANSWERED = "nv_inference_request_success{<engine>}"
_RESUMED = 'llm_resumes_total{outcome="resumed",<gateway>}'
_SILENCE = f"[{QUIET_S}s]"


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        name: Also the heading of its part of the runbook.
        watched: What it looks at, each in PromQL with the placeholders of
            :class:`~pipeline.monitoring.queries.Query`, and who publishes that. It fires on any.
        wait: How long the condition must last, as Prometheus writes a time.
        severity: ``critical``, where requests fail or nobody answers them, or ``warning``.
        summary: What happens, a sentence without its full stop.
        limit: The limit, with where it comes from.
    """

    name: str
    watched: tuple[tuple[Source, str], ...]
    wait: str
    severity: str
    summary: str
    limit: Threshold

    def expr(self, sources: frozenset[Source]) -> str:
        """Joins what is published by some of the sources; empty where nothing is.

        Args:
            sources: Who publishes.
        """
        return " or ".join(f"({expr})" for source, expr in self.watched if source in sources)


def numbers_of(limits: Thresholds, least: int, most: int) -> Mapping[str, str]:
    """Returns the numbers that stand in queries and alerts, as PromQL writes them.

    Args:
        limits: What they come from.
        least: Replicas that there are always.
        most: Replicas that there may be.
    """
    found = {
        "waiting": limits.waiting.promql,
        "free_blocks": limits.free_blocks.promql,
        "errors": limits.errors.promql,
        "stall": f"{limits.stall_s.value:.0f}s",
        "quiet": limits.quiet.promql,
        "resumes": limits.resumes.promql,
        "busy": limits.busy.promql,
        "least": str(least),
        "most": str(most),
    }
    if limits.ttft:
        found["ttft_ms"] = limits.ttft.promql
        found["ttft_quantile"] = limits.ttft.quantile
    if limits.itl:
        found["itl_ms"] = limits.itl.promql
        found["itl_quantile"] = limits.itl.quantile
    return found


def alerts_of(limits: Thresholds, start_s: int) -> Iterator[Alert]:
    """Yields every alert of a build.

    Args:
        limits: Its thresholds; what was not measured has no alert.
        start_s: Seconds that a server may take to start, as its startup probe has it.
    """
    yield Alert(
        "TrtllmNoServer",
        ((Source.SCRAPE, "absent(up{<server>} == 1)"),),
        "2m",
        "critical",
        "No server answers at all",
        Threshold(1, "server", "with fewer nobody is answered; not from the load test"),
    )
    yield Alert(
        "TrtllmNotReady",
        (
            (Source.SCRAPE, f"max by ({_POD}) (up{{<server>}}) == 0"),
            (
                Source.GATEWAY,
                f"max by ({_DEPLOYMENT}, server) (llm_server_ready{{<gateway>}}) == 0",
            ),
            (
                Source.CLUSTER,
                'max by (namespace, pod) (kube_pod_status_ready{condition="false",<cluster>}) == 1',
            ),
        ),
        f"{start_s}s",
        "warning",
        "A server has not been ready for longer than one may load",
        Threshold(
            start_s,
            "s",
            "what the startup probe gives a server: three times the load time that verify "
            "measured, at least ten minutes",
        ),
    )
    yield Alert(
        "TrtllmRequestsWaiting",
        ((Source.BOTH, "pod:trtllm_requests_waiting:sum{<recorded>} > <waiting>"),),
        "5m",
        "warning",
        "More requests wait at a server than it can answer in time",
        limits.waiting,
    )
    if limits.ttft:
        yield Alert(
            "TrtllmFirstTokenSlow",
            (
                (
                    Source.CPU,
                    "pod:trtllm_time_to_first_token_ms:<ttft_quantile>{<recorded>} > <ttft_ms>",
                ),
                (
                    Source.GATEWAY,
                    (
                        "deployment:trtllm_time_to_first_token_ms:<ttft_quantile>{<recorded>}"
                        " > <ttft_ms>"
                    ),
                ),
            ),
            "5m",
            "warning",
            "First tokens come later than the objective",
            limits.ttft,
        )
    if limits.itl:
        yield Alert(
            "TrtllmTokensSlow",
            (
                (
                    Source.CPU,
                    "pod:trtllm_time_per_output_token_ms:<itl_quantile>{<recorded>} > <itl_ms>",
                ),
                # The gateway has every gap and no request's average, which the engine tells better.
                (
                    Source.GPU,
                    (
                        "deployment:trtllm_inter_token_latency_ms:<itl_quantile>{<recorded>}"
                        " > <itl_ms>"
                    ),
                ),
            ),
            "5m",
            "warning",
            "Tokens follow each other more slowly than the objective",
            limits.itl,
        )
    yield Alert(
        "TrtllmKvCacheNearlyFull",
        (
            (Source.BOTH, "pod:trtllm_kv_cache_free_blocks:sum{<recorded>} < <free_blocks>"),
            (Source.CPU, "pod:trtllm_kv_cache_unreserved_blocks:sum{<recorded>} < <free_blocks>"),
        ),
        "10m",
        "warning",
        "The KV cache has hardly room for another request",
        limits.free_blocks,
    )
    yield Alert(
        "TrtllmPreemptions",
        (
            (Source.BOTH, "pod:trtllm_requests_paused:sum{<recorded>} > 0"),
            (Source.CPU, "pod:trtllm_preemptions:rate{<recorded>} > 0"),
        ),
        "10m",
        "warning",
        "Requests that have begun are left out again and again for want of KV blocks",
        Threshold(
            0,
            "requests for ten minutes",
            f"a full batch needs {limits.full_blocks.text}: {limits.full_blocks.why}; with room "
            "for those none is left out",
        ),
    )
    yield Alert(
        "TrtllmErrors",
        (
            (Source.CPU, "deployment:trtllm_engine_errors:ratio{<recorded>} > <errors>"),
            # On the CPU Triton counts there what clients got wrong, too.
            (Source.GPU, "deployment:trtllm_server_errors:ratio{<recorded>} > <errors>"),
            (Source.GATEWAY, "deployment:trtllm_gateway_errors:ratio{<recorded>} > <errors>"),
        ),
        "5m",
        "critical",
        "More requests fail than the load test lets expect",
        limits.errors,
    )
    yield Alert(
        "TrtllmRestarts",
        ((Source.BOTH, "pod:trtllm_engine_restarts:resets1h{<recorded>} > 0"),),
        "0m",
        "warning",
        "An engine was started again within the hour",
        Threshold(0, "restarts in an hour", "none happened in the load test"),
    )
    yield Alert(
        "TrtllmNoTraffic",
        (
            (
                Source.BOTH,
                (
                    f"sum by ({_POD}) (rate({_ANSWERED}{_SILENCE})) == 0"
                    f" and on ({_POD}) max by ({_POD}) (max_over_time({_ACTIVE}{_SILENCE})) == 0"
                    f" and on ({_DEPLOYMENT}) (sum by ({_DEPLOYMENT}) "
                    f"(rate({_ANSWERED}{_SILENCE}))"
                    f" / count by ({_DEPLOYMENT}) (up{{<server>}} == 1)) > <quiet>"
                ),
            ),
            (
                Source.GATEWAY,
                (
                    f"sum by ({_DEPLOYMENT}) (rate(llm_requests_total{{<gateway>}}{_SILENCE})) > "
                    f"<quiet> and on ({_DEPLOYMENT}) sum by ({_DEPLOYMENT}) "
                    f"(rate({_ANSWERED}{_SILENCE})) == 0"
                ),
            ),
        ),
        "5m",
        "warning",
        "No request reaches a server that is up, while others are busy",
        limits.quiet,
    )
    yield Alert(
        "TrtllmEngineStalled",
        (
            (
                Source.BOTH,
                (
                    f"max by ({_POD}) (changes({_STEPS}[<stall>])) == 0"
                    f" and on ({_POD}) min by ({_POD}) (min_over_time({_ACTIVE}[<stall>])) > 0"
                ),
            ),
        ),
        f"{LEAST_STALL_S}s",
        "critical",
        "An engine has requests and makes no step",
        limits.stall_s,
    )
    yield Alert(
        "TrtllmResumes",
        (
            (
                Source.GATEWAY,
                # A series begins with the first streams of its kind, which are no increase.
                (
                    f"sum by ({_DEPLOYMENT}) ((increase({_RESUMED}{_SILENCE}) and "
                    f"{_RESUMED} offset {QUIET_S}s) or {_RESUMED}) > <resumes>"
                ),
            ),
        ),
        "0m",
        "warning",
        "The gateway resumes more streams than one server can have had",
        limits.resumes,
    )

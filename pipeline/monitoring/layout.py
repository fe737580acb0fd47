"""Which panels the dashboard has, in which rows, and what each says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.monitoring.observed import Observed
from pipeline.monitoring.queries import Source
from pipeline.monitoring.thresholds import Threshold

HALF, THIRD, QUARTER = 12, 8, 6


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: Its heading.
        about: What it shows, sentences.
        queries: Their names in the table; none of a panel of text.
        unit: Grafana's id of the unit.
        width: Of the 24 columns.
        lines: Whether it draws lines over time; otherwise it shows a number.
        named: Whether the number has its legend beside it.
        limit: Where a limit is drawn; None draws none.
        bad_above: Whether what lies above the limit is bad; otherwise what lies below.
        why: Where the limit comes from.
        least: The lowest value of the axis; None leaves it to Grafana.
        most: The highest.
        text: Markdown, of a panel without queries.
    """

    title: str
    about: str
    queries: tuple[str, ...] = ()
    unit: str = "short"
    width: int = THIRD
    lines: bool = True
    named: bool = False
    limit: float | None = None
    bad_above: bool = True
    why: str = ""
    least: float | None = 0
    most: float | None = None
    text: str = ""

    def limited(self, limit: Threshold | None, *, above: bool = True) -> Panel:
        """Returns it with a limit drawn in.

        Args:
            limit: In the panel's unit; None where there is none.
            above: Whether what lies above it is bad; otherwise what lies below.
        """
        if limit is None:
            return self
        why = f"The line is at {limit.text}: {limit.why}."
        return replace(self, limit=limit.value, bad_above=above, why=why)

    def described(self, observed: Observed) -> str:
        """Says what the panel shows, who publishes it, and where its limit comes from.

        Args:
            observed: What is watched.
        """
        sources = dict.fromkeys(observed.queries[name].source for name in self.queries)
        told = [_told(source, self, observed) for source in sources]
        return " ".join(text for text in (self.about, *told, self.why) if text)


def _told(source: Source, panel: Panel, observed: Observed) -> str:
    of = [name for name in panel.queries if observed.queries[name].source is source]
    if len(of) == len(panel.queries):
        return source.value
    legends = (observed.queries[name].legend.replace("{{pod}}", "").strip() for name in of)
    return f"{', '.join(text for text in legends if text)}: {source.value}"


def rows(observed: Observed) -> Iterator[tuple[str, list[Panel]]]:
    """Yields the rows with their panels, without what nothing answers in this deployment.

    Args:
        observed: What is watched.
    """
    for title, panels in _rows(observed):
        known = [_known(panel, observed) for panel in panels]
        if there := [panel for panel in known if panel.queries or panel.text]:
            yield title, there


def _known(panel: Panel, observed: Observed) -> Panel:
    return replace(panel, queries=tuple(q for q in panel.queries if q in observed.queries))


def _rows(observed: Observed) -> Iterator[tuple[str, list[Panel]]]:
    limits = observed.limits
    yield (
        "Traffic",
        [
            Panel(
                "Requests by HTTP status",
                "Requests a second at the gateway; 499 is a client that went, 429 a full queue.",
                ("gateway_requests",),
                "reqps",
            ),
            Panel(
                "Requests by outcome",
                "Requests a second that ended in the engines.",
                ("requests_by_outcome",),
                "reqps",
            ),
            Panel(
                "Requests answered",
                "Requests a second that Triton's model tensorrt_llm answered.",
                ("requests_answered",),
                "reqps",
            ),
            Panel(
                "Tokens",
                "Tokens a second: generated as they are made, those of answers when they end.",
                ("generated_tokens", "output_tokens", "gateway_tokens"),
                "short",
                HALF,
            ),
            Panel(
                "Tokens of prompts",
                "Tokens a second: with the first token of an answer, and when it ends.",
                ("prompt_tokens", "input_tokens"),
                "short",
                HALF,
            ),
        ],
    )
    yield (
        "Latency",
        [
            Panel(
                "Time to first token, at the gateway",
                "From the rendered prompt to the first token, with all waiting.",
                ("gateway_ttft_p50", "gateway_ttft_p95"),
                "ms",
            ).limited(limits.ttft),
            Panel(
                "Time to first token, in the engine",
                "From a request's arrival at the engine to its first token.",
                ("engine_ttft_p50", "engine_ttft_p95"),
                "ms",
            ).limited(limits.ttft),
            Panel(
                "Time in the queue",
                "From a request's arrival at the engine until it joins the batch.",
                ("engine_queue_p50", "engine_queue_p95"),
                "ms",
            ),
            Panel(
                "Time per token, in the engine",
                "After the first, the mean of each request.",
                ("engine_itl_p50", "engine_itl_p95"),
                "ms",
            ).limited(limits.itl),
            Panel(
                "Between tokens, in the engine",
                "Each token's time since the one before it.",
                ("engine_gap_p50", "engine_gap_p95"),
                "ms",
            ),
            Panel(
                "Between tokens, at the gateway",
                "Each token's time since the one before it; tokens that came together share it.",
                ("gateway_itl_p50", "gateway_itl_p95"),
                "ms",
            ).limited(limits.itl),
        ],
    )
    yield (
        "Batching and queue",
        [
            Panel(
                "Requests in the engine",
                "In the batch with a token or without, waiting, and the most that a batch takes.",
                (
                    "requests_active",
                    "requests_scheduled",
                    "requests_context",
                    "batcher_generation_requests",
                    "requests_max",
                ),
                width=HALF,
            ),
            Panel(
                "Requests waiting",
                "Requests that are not in the batch.",
                ("requests_waiting",),
                width=HALF,
            ).limited(limits.waiting),
            Panel(
                "Batch",
                "Requests in the batch over the most that it takes. Replicas are scaled by it.",
                ("batch_fill",),
                "percentunit",
                QUARTER,
                most=1,
            ).limited(limits.busy),
            Panel("Steps", "Steps of the engines a second.", ("steps",), "ops", QUARTER),
            Panel(
                "Streams by server",
                "What gateways have at each server.",
                ("gateway_streams",),
                width=QUARTER,
            ),
            Panel(
                "At the gateway",
                "Requests that are being answered, and those of them without a token yet.",
                ("gateway_inflight", "gateway_waiting"),
                width=QUARTER,
            ),
        ],
    )
    yield (
        "KV cache",
        [
            Panel(
                "Blocks",
                "Used, free, promised to requests in the batch, and all of them.",
                ("blocks_used", "blocks_free", "blocks_reserved", "blocks_max"),
                width=HALF,
            ),
            Panel(
                "Blocks that are left",
                "Free blocks, and those that are promised to nobody.",
                ("blocks_free", "blocks_unreserved"),
                width=HALF,
            ).limited(limits.free_blocks, above=False),
            Panel(
                "Use",
                "Blocks in use, of all. Replicas are scaled by it.",
                ("kv_used",),
                "percentunit",
                QUARTER,
                most=1,
            ).limited(limits.busy),
            Panel(
                "Prompts found in the cache",
                "The share of prompts' blocks that were there already.",
                ("kv_hit",),
                "percentunit",
                QUARTER,
                most=1,
            ),
            Panel("Blocks found", "Blocks a second.", ("kv_reused",), "short", QUARTER),
            Panel(
                "Left out for want of blocks",
                "Requests that have begun and are left out now, and how many are left out a "
                "second.",
                ("batcher_paused_requests", "preemptions"),
                width=QUARTER,
            ),
        ],
    )
    yield (
        "Memory",
        [
            Panel(
                "Engine",
                "Memory of the engine's process, pinned memory and that of GPUs; on the CPU the "
                "last two are 0.",
                ("memory_cpu", "memory_gpu", "memory_pinned"),
                "bytes",
                HALF,
            ),
            Panel(
                "Machine",
                "Memory in use on the servers' machines.",
                ("host_memory",),
                "bytes",
                HALF,
            ),
            Panel("GPU memory", "Memory in use.", ("gpu_memory",), "bytes", HALF),
            Panel(
                "GPU", "The share of time in which it works.", ("gpu_busy",), "percentunit", HALF
            ),
        ],
    )
    yield (
        "Errors and restarts",
        [
            Panel(
                "Share of requests that fail",
                "Engines: broken off, of all that were not refused. Servers: Triton's count, which "
                "on the CPU has refused requests in it. Gateway: statuses from 500.",
                ("engine_errors", "server_errors", "gateway_errors"),
                "percentunit",
            ).limited(limits.errors),
            Panel(
                "Failures by reason",
                "Requests a second that Triton's model tensorrt_llm failed.",
                ("failures_by_reason",),
                "reqps",
            ),
            Panel(
                "Streams resumed and broken",
                "Streams a second that went on after their server was lost, and those that ended "
                "with an error.",
                ("gateway_resumes", "gateway_broken"),
                "short",
            ),
            Panel(
                "Restarts",
                "Within the last hour.",
                ("restarts", "container_restarts"),
                width=HALF,
            ),
            Panel(
                "Answering",
                "1 where Prometheus reaches a server, and where it is ready for all gateways.",
                ("up", "gateway_servers"),
                width=HALF,
                most=1,
            ),
        ],
    )
    yield (
        "Build",
        [
            Panel(
                "Servers by build",
                "Servers that answer, by the digest of the repository that they serve.",
                ("builds",),
                width=HALF,
                lines=False,
                named=True,
            ),
            Panel(
                "This dashboard's build",
                "",
                width=HALF,
                lines=False,
                text=_of_build(observed),
            ),
        ],
    )
    if observed.price is not None:
        yield (
            "Cost",
            [
                Panel(
                    "A million tokens",
                    f"{observed.currency} for a million tokens of answers, at the servers that "
                    "answer now and what they generate now. The price of an hour is the "
                    "dashboard's variable.",
                    ("per_million",),
                    f"currency:{observed.currency} ",
                    HALF,
                ),
                Panel(
                    "A day",
                    f"{observed.currency} for 24 hours of the servers that answer now.",
                    ("per_day",),
                    f"currency:{observed.currency} ",
                    HALF,
                    lines=False,
                ),
            ],
        )
    yield (
        "Replicas",
        [
            Panel(
                "Replicas",
                "Servers that answer, beside those wanted: for what waits, at "
                f"{limits.waiting.text} each, for batches and for KV caches, at "
                f"{limits.busy.text} each. The largest counts.",
                (
                    "ready",
                    "wanted_by_waiting",
                    "wanted_by_batch",
                    "wanted_by_cache",
                    "wanted_by_autoscaler",
                ),
                width=24,
                why=f"Waiting: {limits.waiting.why}. Batch and KV cache: {limits.busy.why}.",
            ),
        ],
    )


def _of_build(observed: Observed) -> str:
    load, build = observed.figures.load, observed.deployed.build
    return (
        f"**{build.name}**, build `{observed.digest}`\n\n"
        f"Load test: {load.requests} requests at {load.level}: "
        f"{load.tokens_per_second:.5g} tokens/s, {load.requests_per_second:.3g} requests/s"
    )

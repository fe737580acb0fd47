"""What a build's own load test measured, as the thresholds need it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError, UsageError, cause
from pipeline.manifests.build import Build
from pipeline.reading.json_text import read_json
from pipeline.tables import number, streams


@dataclass(frozen=True)
class LoadTest:
    """One measured level of load: the fastest one.

    Attributes:
        source: Where it was read, such as ``report.json``.
        level: How it was asked, such as ``8 streams``.
        concurrency: Streams that were open together; of an open load the average by Little's law,
            requests per second times seconds a request.
        requests: That ended well.
        failed: That did not.
        requests_per_second: Of those that ended.
        tokens_per_second: That were generated.
        input_tokens: Of a prompt, on average.
        output_tokens: Of an answer, on average.
        ttft_ms: Time to first token by percentile, in milliseconds; None of a model that answers
            once.
        itl_ms: The time per token after the first, one number a request, by percentile; None where
            no answer had two tokens.
    """

    source: str
    level: str
    concurrency: float
    requests: int
    failed: int
    requests_per_second: float
    tokens_per_second: float
    input_tokens: float
    output_tokens: float
    ttft_ms: Mapping[str, float] | None
    itl_ms: Mapping[str, float] | None


@dataclass(frozen=True)
class Figures:
    """All that thresholds are computed from.

    Attributes:
        load: What was measured.
        max_batch_size: Sequences that a batch takes.
        max_seq_len: Tokens of the longest sequence.
        tokens_per_block: Of the KV cache.
        max_queue_size: Requests that may wait; 0 has no limit.
        median_ttft_ms: The objective that the recipe gives the median time to first token; None
            where it gives none.
        median_itl_ms: The same of the time per token.
    """

    load: LoadTest
    max_batch_size: int
    max_seq_len: int
    tokens_per_block: int
    max_queue_size: int
    median_ttft_ms: float | None = None
    median_itl_ms: float | None = None


def figures_of(build: Build, load_test: Path | None = None) -> Figures:
    """Reads the figures of a build.

    Args:
        build: With the report beside it.
        load_test: What ``bench --json`` printed of its server; None takes the load test of the run.

    Raises:
        UnsupportedError: The build has no report, or no load test was measured.
        UsageError: The file is not what ``bench --json`` prints.
    """
    if not build.report:
        raise UnsupportedError(
            "thresholds are computed from this build's report, and there is none of it",
            where=str(build.repository),
            why="A repository that was moved, or that a later run replaced, has no report beside "
            "it",
            fix="Name the folder build/NAME of the run",
        )
    measured = build.section("load") if load_test is None else _read(load_test)
    where = "report.json" if load_test is None else load_test.name
    rows = measured.get("measurements")
    levels = [_level(row, where) for row in rows] if isinstance(rows, list) else []
    if not levels:
        raise UnsupportedError(
            "thresholds are computed from a load test, and this build has none",
            where=str(build.repository),
            fix="Run the recipe with a section bench, or give monitoring.load_test what "
            "trtllm-pipeline bench --json printed",
        )
    recipe = build.recipe
    try:
        compiled, served = recipe["compile"], recipe["serve"]
        constraints = recipe.get("constraints") or {}
        return Figures(
            load=max(levels, key=lambda level: level.tokens_per_second),
            max_batch_size=int(compiled["max_batch_size"]),
            max_seq_len=int(compiled["max_seq_len"]),
            tokens_per_block=int(compiled["tokens_per_block"]),
            max_queue_size=int(served["max_queue_size"] or 0),
            median_ttft_ms=_limit(constraints.get("max_time_to_first_token_ms")),
            median_itl_ms=_limit(constraints.get("max_inter_token_latency_ms")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedError(
            "the report beside the repository does not say the sizes of its engine, or its limits",
            where=str(build.repository),
            why=cause(error),
            fix="Run the recipe again, which writes it anew",
        ) from error


def _limit(value: Any) -> float | None:
    return None if value is None else float(value)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _no_load_test(path, str(error)) from error
    if isinstance(content, Mapping) and isinstance(content.get("measurements"), list):
        return content
    raise _no_load_test(path, "It has no list measurements")


def _no_load_test(path: Path, why: str) -> UsageError:
    return UsageError(
        "this is not what trtllm-pipeline bench --json prints",
        where=str(path),
        why=why,
        fix="Measure with trtllm-pipeline bench --url HOST:PORT --json > FILE",
    )


def _level(row: Any, source: str) -> LoadTest:
    try:
        requests = int(row["requests"])
        rate = float(row["requests_per_second"])
        streams_open = row.get("concurrency")
        if requests < 1 or not math.isfinite(rate) or rate <= 0:
            raise ValueError("no request ended")
        seconds = float(row["latency_ms"]["mean"]) / 1000
        asked = row.get("rate")
        return LoadTest(
            source=source,
            level=streams(streams_open) if streams_open else f"{number(asked, 3)} requests/s",
            concurrency=float(streams_open) if streams_open else rate * seconds,
            requests=requests,
            failed=int(row.get("failed") or 0),
            requests_per_second=rate,
            tokens_per_second=float(row["tokens_per_second"]["value"]),
            input_tokens=int(row["input_tokens"]) / requests,
            output_tokens=int(row["output_tokens"]) / requests,
            ttft_ms=_times(row["ttft_ms"]),
            itl_ms=_times(row["itl_ms"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            "a measurement of the load test is not complete",
            where=source,
            why=cause(error),
            fix="Measure again",
        ) from error


def _times(found: Any) -> Mapping[str, float] | None:
    return None if found is None else {name: float(found[name]) for name in ("p50", "p95", "p99")}


def mean_blocks(figures: Figures) -> int:
    """Computes how many KV blocks a request of the load test's mean length holds at its end."""
    tokens = figures.load.input_tokens + figures.load.output_tokens
    return max(1, math.ceil(tokens / figures.tokens_per_block))


def next_bound(value: float, bounds: Sequence[float]) -> float:
    """Finds the first bound of a histogram at or above a value; the last one if all are below.

    A quantile is above a bound exactly when too few observations lie up to it, so a threshold that
    is a bound is compared without the error of interpolating within a bucket.
    """
    return next((bound for bound in bounds if bound >= value), bounds[-1])

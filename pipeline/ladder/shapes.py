"""What is read of files that somebody may have cut, edited or brought from another version.

A file that has another shape is refused where it is read, by name, rather than wherever a number of
it happens to be used. Keys that nothing here reads may hold anything.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.formats import FormatName


class _Shape(BaseModel):
    # JSON has no number that is not finite, though Python's reader takes NaN.
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Estimate(_Shape):
    value: float | None
    low: float | None
    high: float | None


class _Times(_Shape):
    p50: float


class _Task(_Shape):
    name: str
    rows: int
    source_accuracy: float | None = None
    accuracy: _Estimate
    accuracy_change: _Estimate | None = None


# A text has a perplexity of 1 at least.
_Perplexity = Annotated[float, Field(gt=0.0)]


class _Quality(_Shape):
    tokens: int | None = None
    documents: int | None = None
    source_perplexity: _Perplexity | None = None
    perplexity: _Estimate | None = None
    perplexity_increase: _Estimate | None = None
    bits_per_byte: _Estimate | None = None
    kl_divergence: _Estimate | None = None
    kl_divergence_p99: _Estimate | None = None
    top1_agreement: _Estimate | None = None
    tasks: list[_Task] | None = None


class _Level(_Shape):
    concurrency: int
    tokens_per_second: _Estimate
    ttft_ms: _Times | None = None
    itl_ms: _Times | None = None
    prefill_tokens_per_second: _Estimate | None = None
    decode_tokens_per_second: _Estimate | None = None


class Load(_Shape):
    """What is read of a ``bench.json``, or of a server of an interleaved run."""

    measurements: list[_Level] = []
    memory_bytes: int | None = None
    prefill_tokens_per_second: _Estimate | None = None
    decode_tokens_per_second: _Estimate | None = None


class _AgainstCheckpoint(_Shape):
    perplexity_increase: _Estimate | None = None


class _Fidelity(_Shape):
    against_checkpoint: _AgainstCheckpoint | None = None


class _Size(_Shape):
    checkpoint_bytes: int | None = None
    engine_bytes: int | None = None
    share: float | None = None


class _Model(_Shape):
    parameters: int | None = None


class _Quantize(_Shape):
    format: FormatName


class _Recipe(_Shape):
    quantize: _Quantize


class _Verdict(_Shape):
    verdict: str
    headline: str
    reasons: list[str]


class _Cost(_Shape):
    currency: str
    per_million_tokens: _Estimate


class Report(_Shape):
    """What is read of a ``report.json``."""

    name: str
    created: str
    verdict: _Verdict
    gates: list[dict[str, Any]]
    recipe: _Recipe
    model: _Model | None
    size: _Size | None
    quality: _Quality | None
    fidelity: _Fidelity | None
    load: Load | None
    cost: _Cost | None


class _Speed(_Shape):
    concurrency: int
    tokens_per_second: _Estimate


class _Followed(_Shape):
    tokens: int
    documents: int
    source_perplexity: _Perplexity | None
    perplexity: _Estimate
    perplexity_increase: _Estimate
    kl_divergence: _Estimate
    top1_agreement: _Estimate
    tasks: list[_Task]


class HistoryLine(_Shape):
    """What is read of a line of a history."""

    key: str
    created: str
    verdict: str
    machine: dict[str, Any] | None
    size: _Size | None
    quality: _Followed | None
    load: list[_Speed]


def misfit(shape: type[BaseModel], values: object) -> str | None:
    """Says where values are not of a shape, in words; None where they are.

    Args:
        shape: A class of this module.
        values: What was read.
    """
    try:
        shape.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"]
        return f"{key}: {message[:1].lower()}{message[1:]}" if key else message
    return None

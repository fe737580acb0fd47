"""A rung as JSON values: what its report says and what was measured beside the others.

Both kinds of comparison, of a ladder and of finished builds, make their rows here, so that programs
find the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.formats import FORMATS
from pipeline.ladder.rungs import Rung
from pipeline.ladder.shapes import Report, misfit
from pipeline.reading.json_text import read_json
from pipeline.report.collect import SCHEMA
from pipeline.report.prices import price_of

REPORT = "report.json"
REFUSED = "REFUSED"
BITS = 8
_QUALITY = (
    *("tokens", "documents", "source_perplexity", "perplexity", "perplexity_increase"),
    *("bits_per_byte", "kl_divergence", "kl_divergence_p99", "top1_agreement"),
)
_SPEED = ("memory_bytes", "prefill_tokens_per_second", "decode_tokens_per_second")
_LEVEL = (
    *("concurrency", "requests", "seconds", "tokens_per_second", "ttft_ms", "itl_ms"),
    *("latency_ms", "by_round", "prefill_tokens_per_second", "decode_tokens_per_second"),
    *("ratio", "difference", "prefill_ratio"),
)


def read_report(path: Path) -> dict[str, Any]:
    """Reads a ``report.json``.

    Raises:
        UsageError: It is not one, or one of another version, or was changed.
    """
    try:
        report = read_json(path, finite=False)
    except OSError as error:
        raise _no_report(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _no_report(path, str(error)) from error
    if not isinstance(report, dict):
        raise _no_report(path, "it is no JSON object")
    if report.get("schema") != SCHEMA:
        raise _no_report(path, f"its schema is {report.get('schema')!r:.40}, not {SCHEMA}")
    if why := misfit(Report, report):
        raise _no_report(path, why)
    return report


def _no_report(path: Path, why: str) -> UsageError:
    return UsageError(
        "this is not a report that can be compared",
        where=str(path),
        why=why,
        fix="Name build/<recipe name> folders; a run of the recipe writes its report again",
    )


def refused(rung: Rung) -> dict[str, Any]:
    """Makes the row of a rung that there cannot be."""
    return {**broken(rung), "verdict": REFUSED, "headline": rung.refusal}


def broken(rung: Rung) -> dict[str, Any]:
    """Makes the row of a rung that did not get far enough to leave a report."""
    return {**_empty(rung.name, rung.format.name), **_called(rung)}


def as_rung(report: Mapping[str, Any], rung: Rung) -> dict[str, Any]:
    """Makes the row of a rung of a ladder.

    Where the target rounds to a type of its own, the engine is what is compared: its numbers are
    those of the stage that measured it, its size is that of the file that is served.

    Args:
        report: From :func:`read_report`.
        rung: The rung.
    """
    row = row_of(report)
    if rung.own is not None:
        row |= _of_the_engine(report, row)
    return {**row, **_called(rung)}


def _called(rung: Rung) -> dict[str, Any]:
    bits = {} if rung.own is None else {"weight_bits": rung.own.weight_bits}
    return {"name": rung.name, "format": rung.label, "engine": rung.engine, **bits}


def _of_the_engine(report: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    fidelity, size = report["fidelity"] or {}, row["engine_bytes"]
    whole, checkpoint = row["share_of_16bit"], row["checkpoint_bytes"]
    parameters = (report["model"] or {}).get("parameters")
    return {
        **{name: fidelity.get(name) for name in _QUALITY},
        "source_perplexity": row["source_perplexity"],
        "tasks": fidelity.get("tasks") or [],
        "checkpoint_bytes": size,
        "share_of_16bit": size / checkpoint * whole if size and checkpoint and whole else None,
        "bits_per_parameter": size * BITS / parameters if size and parameters else None,
        "engine_perplexity_increase": None,
    }


def row_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a row of what :func:`read_report` returned.

    Keys have the units of the files they come from; ``load`` is that of the recipe's own bench
    stage, which measures one server alone, until :func:`with_load` replaces it.
    """
    quality, load = report["quality"] or {}, report["load"] or {}
    fidelity, size = report["fidelity"] or {}, report["size"] or {}
    model, checkpoint = report["model"] or {}, size.get("checkpoint_bytes")
    parameters = model.get("parameters")
    verdict = report["verdict"]
    against = fidelity.get("against_checkpoint") or {}
    return {
        **_empty(report["name"], report["recipe"]["quantize"]["format"]),
        "engine": report["recipe"].get("compile", {}).get("target"),
        "verdict": verdict["verdict"],
        "headline": verdict["headline"],
        "reasons": verdict["reasons"],
        "gates": report["gates"],
        "bits_per_parameter": checkpoint * BITS / parameters if checkpoint and parameters else None,
        "checkpoint_bytes": checkpoint,
        "engine_bytes": size.get("engine_bytes"),
        "share_of_16bit": size.get("share"),
        **{name: quality.get(name) for name in _QUALITY},
        "tasks": quality.get("tasks") or [],
        "engine_perplexity_increase": against.get("perplexity_increase"),
        **{name: load.get(name) for name in _SPEED},
        "load": [_level(row) for row in load.get("measurements", ())],
        "cost_per_million": (report["cost"] or {}).get("per_million_tokens"),
    }


def with_load(row: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the load of a row by what one server of an interleaved run gave.

    Args:
        row: From :func:`row_of`.
        measured: See :func:`pipeline.bench.interleaved.measure_interleaved`.
    """
    alone = {name: measured[name] for name in _SPEED if measured.get(name) is not None}
    return {**row, **alone, "load": [_level(level) for level in measured["measurements"]]}


def with_cost(
    row: Mapping[str, Any], price: float | None, utilization: float, concurrency: int | None
) -> dict[str, Any]:
    """Adds what a million tokens cost at one number of streams.

    Args:
        row: A rung.
        price: What the machine costs for an hour; None gives no cost.
        utilization: The share of the time in which it is asked for tokens.
        concurrency: The number of streams; None gives no cost.
    """
    level = level_at(row, concurrency)
    speed = level["tokens_per_second"] if level else None
    cost = None
    if price is not None and speed is not None and speed["value"]:
        cost = price_of(speed, price, utilization)
    return {**row, "cost_per_million": cost}


def level_at(row: Mapping[str, Any], concurrency: int | None) -> dict[str, Any] | None:
    """Returns what a rung gave at one number of streams; None where it was not measured."""
    found: list[dict[str, Any]] = row["load"]
    return next((level for level in found if level["concurrency"] == concurrency), None)


def _level(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in _LEVEL}


def _empty(name: str, format_name: str) -> dict[str, Any]:
    """A row of which nothing is known but its name; it has every key."""
    row = FORMATS[format_name]  # type: ignore[index]  # a report's recipe was validated
    return {
        "name": name,
        "format": format_name,
        "engine": None,
        "weight_bits": row.weight_bits,
        "activation_bits": row.activation_bits,
        "verdict": None,
        "headline": None,
        "reasons": [],
        "gates": [],
        "bits_per_parameter": None,
        "checkpoint_bytes": None,
        "engine_bytes": None,
        "share_of_16bit": None,
        **dict.fromkeys(_QUALITY),
        "tasks": [],
        "engine_perplexity_increase": None,
        **dict.fromkeys(_SPEED),
        "load": [],
        "cost_per_million": None,
        "claims": [],
    }

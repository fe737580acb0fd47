"""Reports of several recipes side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.tables import print_table

MEASURES = (
    "verdict",
    "format",
    "MiB",
    "perplexity",
    "increase %",
    "top-1 %",
    "KL",
    "tokens/s",
    "streams",
    "first token ms",
)
# Of a run that ended before the load test.
NOT_MEASURED = {"tokens_per_second": None, "concurrency": None, "ttft_ms": {"p50": None}}


def comparison(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads the reports into rows, one per report.

    Args:
        paths: ``report.json`` files, folders that hold one, or build directories, which stand for
            all their reports.

    Raises:
        UsageError: A path is not a report.
    """
    return [_row(report) for path in paths for report in _reports(path)]


def print_side_by_side(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints one column per report, so that any terminal is wide enough for a few of them."""
    print_table(
        ["", *(row["name"] for row in rows)],
        [[measure, *(row[measure] for row in rows)] for measure in MEASURES],
    )


def _reports(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    own = path / "report.json"
    return [own] if own.is_file() else sorted(path.glob("*/report.json")) or [own]


def _row(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        quality, load = report["quality"] or {}, report["load"] or {"rows": [NOT_MEASURED]}
        checkpoint = report["checkpoint"]
        fastest = max(load["rows"], key=lambda row: row["tokens_per_second"] or 0.0)
        increase, agreement = quality.get("perplexity_increase"), quality.get("top1_agreement")
        return {
            "name": report["name"],
            "verdict": report["verdict"]["status"],
            "format": report["recipe"]["quantize"]["format"],
            "MiB": checkpoint["bytes"] / 2**20 if checkpoint else None,
            "perplexity": quality.get("perplexity"),
            "increase %": None if increase is None else increase * 100,
            "top-1 %": None if agreement is None else agreement * 100,
            "KL": quality.get("kl_divergence"),
            "tokens/s": fastest["tokens_per_second"],
            "streams": fastest["concurrency"],
            "first token ms": (fastest["ttft_ms"] or {}).get("p50"),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "this is not a report",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            fix="Name build/<recipe name> folders; an old report is written again by a run",
        ) from error

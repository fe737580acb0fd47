"""What every request measured, as a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bench.traffic.objectives import Objectives
from pipeline.bench.traffic.rounds import Answer, Round
from pipeline.bench.traffic.schedule import CLOSED, Level
from pipeline.bench.traffic.summary import TIMES
from pipeline.errors import UsageError

ARRIVALS = "arrivals"
CSV, JSONL = ".csv", ".jsonl"

Rounds = Mapping[tuple[str, Level], Sequence[Round]]
"""The rounds by name of the server and level."""


def check_name(path: Path) -> Path:
    """Refuses a file whose name does not say how it is written.

    Raises:
        UsageError: It ends neither with ``.jsonl`` nor with ``.csv``.
    """
    if path.suffix.lower() not in (CSV, JSONL):
        raise UsageError(
            "the name of the samples does not say how they are written",
            where=str(path),
            fix="Let it end with .jsonl, which keeps every arrival, or with .csv",
        )
    return path


def sample_rows(rounds: Rounds, objectives: Objectives | None) -> Iterator[dict[str, Any]]:
    """Yields what is known of every request, those of the warm-up too.

    Args:
        rounds: What was measured.
        objectives: What makes a request a good one.
    """
    for (server, level), made in rounds.items():
        for number, one in enumerate(made, 1):
            counted = {id(answer) for answer in one.counted}
            for answer in sorted(one.answers, key=lambda answer: answer.sent):
                yield {
                    "server": server,
                    "load": level.kind,
                    "concurrency": int(level.amount) if level.kind == CLOSED else None,
                    "rate": None if level.kind == CLOSED else level.amount,
                    "round": number,
                    "counted": id(answer) in counted,
                    **_row(answer, objectives),
                }


def _row(answer: Answer, objectives: Objectives | None) -> dict[str, Any]:
    timeline, request = answer.timeline, answer.request
    kind, message = answer.error or (None, None)
    times = {name: time(timeline) if timeline else None for name, time in TIMES.items()}
    return {
        "request": request.number,
        "planned_s": request.at,
        "sent_s": answer.sent,
        **{name: None if time is None else round(time * 1000, 3) for name, time in times.items()},
        "planned_input_tokens": request.input_tokens,
        "planned_output_tokens": request.output_tokens,
        "input_tokens": timeline.input_tokens if timeline else None,
        "output_tokens": timeline.output_tokens if timeline else None,
        "good": None if objectives is None else bool(timeline and objectives.met(timeline)),
        "error": kind,
        "message": message,
        ARRIVALS: [[at, tokens] for at, tokens in timeline.arrivals] if timeline else None,
    }


def write_samples(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes a request a line; a ``.csv`` file leaves the single arrivals out.

    Args:
        path: The file; its suffix decides.
        rows: What :func:`sample_rows` yields.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == JSONL:
                file.writelines(f"{json.dumps(row)}\n" for row in rows)
                return
            writer: csv.DictWriter[str] | None = None
            for row in rows:
                del row[ARRIVALS]
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow(row)
    except OSError as error:
        raise UsageError(
            "the samples cannot be written",
            where=str(path),
            why=error.strerror,
            fix="Name a file that can be created",
        ) from error

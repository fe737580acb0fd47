"""What others say of a format, to be read beside what was measured here.

``claims.json`` has a row for each: ``measure`` is ``speed_up`` (over 16 bit, ``streams`` at a time;
null is not said), ``perplexity_increase``, ``accuracy_loss`` (both shares of the 16-bit model's) or
``share_of_16bit`` (bytes); ``bound`` is written before ``value``. ``kind`` is ``published`` where
somebody says how it was measured, and ``folklore`` otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.verdict.estimate import Estimate

DATA = Path(__file__).with_name("claims.json")


@cache
def _every() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(DATA.read_text(encoding="utf-8")))


def with_claims(row: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a rung the claims about its format, each with ``here``: the same measured here.

    ``here`` is an estimate, or None where it was not measured. A speed-up that is claimed without a
    number of streams is held against the largest of this rung, at ``here_streams``.
    """
    claims = []
    for claim in _every():
        if claim["format"] == row["format"]:
            here, streams = _here(row, claim)
            claims.append({**claim, "here": here, "here_streams": streams})
    return {**row, "claims": claims}


def _here(
    row: Mapping[str, Any], claim: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, int | None]:
    measure = claim["measure"]
    if measure == "speed_up":
        return _speed_up(row, claim["streams"])
    if measure == "accuracy_loss":
        return _accuracy_loss(row), None
    value = row[measure]
    if value is None or isinstance(value, Mapping):
        return (dict(value) if value else None), None
    return {"value": value, "low": None, "high": None}, None


def _speed_up(
    row: Mapping[str, Any], streams: int | None
) -> tuple[dict[str, Any] | None, int | None]:
    levels = [level for level in row["load"] if level["ratio"] and level["ratio"]["value"]]
    if streams is not None:
        levels = [level for level in levels if level["concurrency"] == streams]
    if not levels:
        return None, None
    best = max(levels, key=lambda level: level["ratio"]["value"])
    return best["ratio"], best["concurrency"]


def _accuracy_loss(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The loss of the task that lost most, as a share of the source's accuracy."""
    tasks = [
        task
        for task in row["tasks"]
        if task["source_accuracy"] and task["accuracy_change"]["value"] is not None
    ]
    if not tasks:
        return None
    worst = min(tasks, key=lambda t: t["accuracy_change"]["value"] / t["source_accuracy"])
    loss = Estimate.from_dict(worst["accuracy_change"]).negated().as_dict()
    source = worst["source_accuracy"]
    return {name: None if end is None else end / source for name, end in loss.items()}

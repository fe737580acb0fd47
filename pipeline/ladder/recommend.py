"""Which rung to take, and why; or which came nearest, and what it misses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ladder.row import level_at
from pipeline.recipe.schema import ConstraintsSection
from pipeline.tables import number, streams
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.words import signed_percent

ACCEPT = "ACCEPT"
RULE = (
    "Of the formats that keep every gate and constraint the cheapest per token, which on one "
    "machine is the fastest; of those whose speeds do not differ, the smallest on disk."
)


@dataclass(frozen=True)
class Miss:
    """A gate or a constraint that a rung does not keep.

    Attributes:
        name: The gate, or the key below ``constraints``.
        words: What is wrong, as a clause.
        excess: How far beyond the limit it is, as a share of the limit; infinite where no number
            says it.
    """

    name: str
    words: str
    excess: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values; None is an infinite excess."""
        excess = self.excess if math.isfinite(self.excess) else None
        return {"name": self.name, "words": self.words, "excess": excess}


def deciding_level(rows: Sequence[Mapping[str, Any]], wanted: int | None) -> int | None:
    """Returns the number of streams at which speed counts; None where nothing was loaded.

    Args:
        rows: The rungs.
        wanted: ``constraints.concurrency``; None is the largest.
    """
    levels = {level["concurrency"] for row in rows for level in row["load"]}
    return wanted if wanted in levels else max(levels, default=None)


def recommend(
    rows: Sequence[Mapping[str, Any]],
    constraints: ConstraintsSection,
    concurrency: int | None,
    baseline: str | None,
) -> dict[str, Any]:
    """Chooses a rung by :data:`RULE`.

    A constraint counts as kept when the whole interval of what was measured keeps it.

    Args:
        rows: The rungs.
        constraints: The recipe's.
        concurrency: From :func:`deciding_level`.
        baseline: The name of the rung that ``ratio`` compares with.

    Returns:
        JSON values: ``name`` and ``format`` of the rung, None when none qualifies; ``reason`` in
        words; ``rule``; ``concurrency``; ``misses`` by name of the rung; ``nearest``, the name of
        the rung that misses least when none qualifies.
    """
    misses = {row["name"]: list(_misses(row, constraints, concurrency)) for row in rows}
    fit = [row for row in rows if not misses[row["name"]]]
    result: dict[str, Any] = {
        "name": None,
        "format": None,
        "reason": "",
        "rule": RULE,
        "concurrency": concurrency,
        "misses": {name: [miss.as_dict() for miss in found] for name, found in misses.items()},
        "nearest": None,
    }
    if fit:
        best = _best(fit, concurrency)
        reason = _reason(best, rows, concurrency, baseline)
        return {**result, "name": best["name"], "format": best["format"], "reason": reason}
    if not rows:
        return {**result, "reason": "None qualifies: there is no format to choose from."}
    nearest = min(rows, key=lambda row: max(miss.excess for miss in misses[row["name"]]))
    found = sorted(misses[nearest["name"]], key=lambda miss: -miss.excess)
    reason = (
        f"None qualifies. Nearest is {nearest['format']}: "
        f"{'; '.join(miss.words for miss in found)}."
    )
    return {**result, "nearest": nearest["name"], "reason": reason}


def _misses(
    row: Mapping[str, Any], constraints: ConstraintsSection, concurrency: int | None
) -> Iterator[Miss]:
    if row["verdict"] != ACCEPT:
        closed = [gate for gate in row["gates"] if gate["verdict"] != ACCEPT]
        for gate in closed:
            yield Miss(gate["name"], gate["evidence"], _gate_excess(gate))
        if not closed:
            why = row["reasons"][0] if row["reasons"] else row["headline"]
            yield Miss("verdict", f"{row['verdict']}: {why}".rstrip("."), math.inf)
            return
    level = level_at(row, concurrency)
    at = f" at {streams(concurrency)}" if concurrency else ""
    limits = constraints
    if limits.max_perplexity_increase is not None:
        yield from _above(
            "max_perplexity_increase",
            "the increase of perplexity",
            row["perplexity_increase"],
            limits.max_perplexity_increase,
            _percent,
        )
    if limits.max_accuracy_loss is not None:
        losses = {
            task["name"]: Estimate.from_dict(task["accuracy_change"]).negated().as_dict()
            for task in row["tasks"]
        }
        for task, loss in losses.items() or [("any task", None)]:
            what = f"the loss of accuracy in {task}"
            yield from _above("max_accuracy_loss", what, loss, limits.max_accuracy_loss, _percent)
    for key, name, what in (
        ("max_time_to_first_token_ms", "ttft_ms", "the median wait for a first token"),
        ("max_inter_token_latency_ms", "itl_ms", "the median time between tokens"),
    ):
        limit, times = getattr(limits, key), level[name] if level else None
        if limit is not None:
            found = {"value": times["p50"], "low": None, "high": None} if times else None
            yield from _above(key, f"{what}{at}", found, limit, _milliseconds)
    if limits.min_tokens_per_second is not None:
        yield from _below(
            "min_tokens_per_second",
            f"the throughput{at}",
            level["tokens_per_second"] if level else None,
            limits.min_tokens_per_second,
        )


def _above(
    key: str, what: str, found: Mapping[str, Any] | None, limit: float, show: Any
) -> Iterator[Miss]:
    if found is None or found["value"] is None:
        yield Miss(key, f"{what} was not measured ({key})", math.inf)
        return
    worst = found["value"] if found["high"] is None else max(found["value"], found["high"])
    if worst <= limit:
        return
    measured = f"{what} is {show(found['value'])}"
    if found["value"] <= limit:
        measured += f" and may be {show(worst)}"
    words = f"{measured}, {show(worst - limit)} over {key} {show(limit)}"
    yield Miss(key, words, (worst - limit) / limit if limit else math.inf)


def _below(key: str, what: str, found: Mapping[str, Any] | None, limit: float) -> Iterator[Miss]:
    if found is None or found["value"] is None:
        yield Miss(key, f"{what} was not measured ({key})", math.inf)
        return
    worst = found["value"] if found["low"] is None else min(found["value"], found["low"])
    if worst >= limit:
        return
    measured = f"{what} is {number(float(found['value']))}"
    if found["value"] >= limit:
        measured += f" and may be {number(float(worst))}"
    words = f"{measured} tokens/s, {number(limit - worst)} under {key} {number(float(limit))}"
    yield Miss(key, words, (limit - worst) / limit)


def _gate_excess(gate: Mapping[str, Any]) -> float:
    """How far from its limit a gate's number lies, as a share of the limit."""
    measured, limit = gate["measured"], gate["limit"]
    if measured is None or not limit:
        return math.inf
    return float(abs(measured - limit) / limit)


def _best(rows: Sequence[Mapping[str, Any]], concurrency: int | None) -> Mapping[str, Any]:
    def size(row: Mapping[str, Any]) -> float:
        return row["checkpoint_bytes"] or math.inf

    measured = [row for row in rows if _speed(row, concurrency) is not None]
    if not measured:
        return min(rows, key=size)
    fastest = max(measured, key=lambda row: _speed(row, concurrency)["value"])
    alike = [row for row in measured if not _differ(fastest, row, concurrency)]
    return min(alike, key=size)


def _speed(row: Mapping[str, Any], concurrency: int | None) -> Any:
    level = level_at(row, concurrency)
    speed = level["tokens_per_second"] if level else None
    return speed if speed and speed["value"] is not None else None


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], concurrency: int | None) -> bool:
    """Whether the speeds of two rungs do, by the rounds that both were measured in."""
    from pipeline.bench.intervals import differs, paired_ratio

    if one is other:
        return False
    rounds = [level_at(row, concurrency)["by_round"] or () for row in (one, other)]  # type: ignore[index]  # both have a speed there
    if rounds[0] and len(rounds[0]) == len(rounds[1]):
        return differs(paired_ratio(*rounds))
    return bool(_speed(one, concurrency)["value"] != _speed(other, concurrency)["value"])


def _reason(
    best: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    concurrency: int | None,
    baseline: str | None,
) -> str:
    parts = ["it keeps every gate and constraint"]
    level = level_at(best, concurrency)
    speed = _speed(best, concurrency)
    if level and speed:
        text = f"{number(float(speed['value']))} tokens/s at {streams(concurrency or 1)}"
        base = next((row["format"] for row in rows if row["name"] == baseline), None)
        if base and best["name"] != baseline and level["ratio"]:
            ratio = level["ratio"]["value"]
            text += (
                f", {ratio:.2f} times {base}"
                if level["difference"]
                else f", no faster or slower than {base}"
            )
        parts.append(text)
    if best["share_of_16bit"] is not None:
        parts.append(f"{best['share_of_16bit'] * 100:.0f} % of 16 bit on disk")
    increase = best["perplexity_increase"]
    if increase and increase["value"] is not None:
        parts.append(f"perplexity {signed_percent(increase['value'])} against the source")
    else:
        parts.append("its quality was not measured, for the recipe has no section evaluate")
    return f"Take {best['format']}: {'; '.join(parts)}."


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _milliseconds(time: float) -> str:
    return f"{number(float(time))} ms"

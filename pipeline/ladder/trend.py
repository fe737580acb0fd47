"""The trend over the runs of a recipe: what changed from one to the next, beyond its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.ladder.shapes import HistoryLine, misfit
from pipeline.store.journal import read
from pipeline.tables import number, streams
from pipeline.verdict.words import signed_percent

NAME = "history.jsonl"
_QUALITY = (
    ("perplexity_increase", "perplexity against the source", False),
    ("kl_divergence", "KL divergence", False),
    ("top1_agreement", "top-1 agreement", True),
)


@dataclass(frozen=True)
class Change:
    """A number that left its interval.

    Attributes:
        measure: Its key; a throughput has its number of streams behind a point.
        words: What it was and is.
        worse: Whether that is a loss.
    """

    measure: str
    words: str
    worse: bool


def trend(place: Path) -> dict[str, Any]:
    """Reads the history of a recipe's output folder and marks what changed in it.

    A change is marked where each of two values lies outside the other's interval. Quality is
    compared with the last run that scored the same text with the same source model, speed with the
    last one on the same machine, so that neither is compared with something else.

    Args:
        place: The folder, or the file in it.

    Returns:
        JSON values: ``name`` and ``runs``, the oldest first: the lines of the file, each with
        ``changes`` (``measure``, ``words``, ``worse``) since the run before it.

    Raises:
        UsageError: There is no history, it has no run, or it is damaged.
    """
    path = place / NAME if place.is_dir() else place
    lines = read(path)
    if not lines:
        raise UsageError(
            "this history has no run",
            where=str(path),
            fix="Every finished run of a recipe adds a line to it: trtllm-pipeline run RECIPE",
        )
    for index, line in enumerate(lines, 1):
        if why := misfit(HistoryLine, line):
            raise UsageError(
                "this history is not one that this version wrote",
                where=f"{path}:{index}",
                why=why,
                fix="Move the file away: the next run begins a new one",
            )
    runs = [
        {**line, "changes": [asdict(change) for change in _changes(lines[:index], line)]}
        for index, line in enumerate(lines)
    ]
    return {"name": path.resolve().parent.name, "runs": runs}


def _changes(before: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> Iterator[Change]:
    same_text = next((one for one in reversed(before) if _same_text(one, line)), None)
    if same_text:
        for key, name, more_is_better in _QUALITY:
            yield from _change(
                key, name, same_text["quality"][key], line["quality"][key], more_is_better
            )
        yield from _accuracies(same_text["quality"]["tasks"], line["quality"]["tasks"])
    same_machine = next((one for one in reversed(before) if _same_machine(one, line)), None)
    if same_machine:
        old = {row["concurrency"]: row["tokens_per_second"] for row in same_machine["load"]}
        for row in line["load"]:
            level = row["concurrency"]
            yield from _change(
                f"tokens_per_second.{level}",
                f"tokens/s at {streams(level)}",
                old.get(level),
                row["tokens_per_second"],
                more_is_better=True,
            )


def _accuracies(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> Iterator[Change]:
    old = {(task["name"], task["rows"]): task["accuracy"] for task in before}
    for task in now:
        yield from _change(
            f"accuracy.{task['name']}",
            f"accuracy in {task['name']}",
            old.get((task["name"], task["rows"])),
            task["accuracy"],
            more_is_better=True,
        )


def _change(
    measure: str,
    name: str,
    old: Mapping[str, Any] | None,
    new: Mapping[str, Any] | None,
    more_is_better: bool,
) -> Iterator[Change]:
    if old is None or new is None or None in (old["value"], new["value"]):
        return
    if _inside(new["value"], old) or _inside(old["value"], new):
        return
    worse = (new["value"] < old["value"]) == more_is_better
    words = f"{name} from {_shown(old)} to {_shown(new)}"
    yield Change(measure, words, worse)


def _inside(value: float, found: Mapping[str, Any]) -> bool:
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return bool(value == found["value"])
    return bool(low <= value <= high)


def _shown(found: Mapping[str, Any]) -> str:
    if found["low"] is None or found["high"] is None:
        return number(float(found["value"]))
    return (
        f"{number(float(found['value']))} "
        f"[{number(float(found['low']))}, {number(float(found['high']))}]"
    )


def _same_text(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    a, b = one["quality"], other["quality"]
    if not a or not b or None in (a["source_perplexity"], b["source_perplexity"]):
        return False
    if (a["tokens"], a["documents"]) != (b["tokens"], b["documents"]):
        return False
    # Other processors round otherwise, which is far below what another text would do.
    return bool(abs(a["source_perplexity"] / b["source_perplexity"] - 1.0) < 1e-3)


def _same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["load"] and one["machine"] == other["machine"])


def table_of(history: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Makes a table of a history, the newest last.

    Args:
        history: From :func:`trend`.

    Returns:
        The headings, and the cells of each run. ``perplexity`` tells what the change does not when
        the source changes, and can be done without.
    """
    columns = [
        *("finished (UTC)", "key", "verdict", "perplexity"),
        *("perplexity change, %", "KL", "tokens/s", "MiB"),
    ]
    table = []
    for run in history["runs"]:
        quality = run["quality"] or {}
        speeds = [row["tokens_per_second"]["value"] for row in run["load"]]
        size = (run["size"] or {}).get("checkpoint_bytes")
        table.append(
            [
                (run.get("finished") or run["created"])[: len("2026-11-28T14:03")].replace(
                    "T", " "
                ),
                run["key"][:8],
                run["verdict"],
                _value(quality.get("perplexity")),
                _change_of(quality.get("perplexity_increase")),
                _value(quality.get("kl_divergence"), 3),
                number(max((float(s) for s in speeds if s is not None), default=None)),
                number(size / 2**20) if size else "-",
            ]
        )
    return columns, table


def remarks(history: Mapping[str, Any]) -> list[str]:
    """Says in a line each what changed, or that nothing did."""
    found = [
        f"{run['key'][:8]}: {'worse' if change['worse'] else 'better'}: {change['words']}"
        for run in history["runs"]
        for change in run["changes"]
    ]
    if found or len(history["runs"]) < 2:
        return found
    return ["No change is outside its interval."]


def _change_of(found: Mapping[str, Any] | None) -> str:
    value = found["value"] if found else None
    return "-" if value is None else signed_percent(value).removesuffix(" %")


def _value(found: Mapping[str, Any] | None, digits: int = 4) -> str:
    value = found["value"] if found else None
    return number(None if value is None else float(value), digits)

"""What a load test measured, request by request: the file that ``bench --samples`` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.traffic.schedule import CLOSED, Level
from pipeline.errors import UsageError
from pipeline.reading.files import read_utf8
from pipeline.reading.json_text import JsonError, parse_json

_FIX = (
    "Measure with trtllm-pipeline bench --samples FILE.jsonl, at two loads or more: "
    "--concurrency 1,4,16, or --rate 2,8"
)
_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Seen:
    """One request that was answered; seconds are those of its round.

    Attributes:
        planned: When it was planned, or sent in a closed loop: its times count from there.
        sent: When it was sent.
        first: When its first tokens came.
        last: When its last ones came.
        first_tokens: Tokens that came first.
        prompt: Tokens of its prompt.
        output: Tokens of its answer.
        counted: Whether it is behind the warm-up.
    """

    planned: float
    sent: float
    first: float
    last: float
    first_tokens: int
    prompt: int
    output: int
    counted: bool

    @property
    def ttft(self) -> float:
        """Seconds until its first tokens, from where its time begins."""
        return self.first - self.planned

    @property
    def later(self) -> int:
        """Tokens after the first ones."""
        return self.output - self.first_tokens

    @property
    def itl(self) -> float | None:
        """Seconds per token after the first ones; None where there are none."""
        return (self.last - self.first) / self.later if self.later else None


@dataclass(frozen=True)
class Measured:
    """One load on one server.

    Attributes:
        level: The kind and amount.
        rounds: What was answered in each round.
        failed: Requests that were not.
    """

    level: Level
    rounds: Sequence[Sequence[Seen]]
    failed: int

    @property
    def counted(self) -> list[Seen]:
        """All that is behind the warm-up."""
        return [seen for made in self.rounds for seen in made if seen.counted]

    @property
    def seconds(self) -> float:
        """The time measured, over all rounds: from a round's first counted request to its last one,
        or to its end where it is alone."""
        return sum(end - begin for begin, end in self._spans())

    @property
    def tokens_per_second(self) -> float:
        """Tokens that came in the time measured; those of a stream at an even pace."""
        came = 0.0
        for made, (begin, end) in zip(self.rounds, self._spans(), strict=True):
            came += sum(_tokens_within(seen, begin, end) for seen in made)
        return came / self.seconds if self.seconds else 0.0

    def _spans(self) -> list[tuple[float, float]]:
        spans = []
        for made in self.rounds:
            counted = [seen for seen in made if seen.counted]
            begins = [seen.planned for seen in counted]
            if not begins:
                spans.append((0.0, 0.0))
            elif max(begins) > min(begins):
                spans.append((min(begins), max(begins)))
            else:
                spans.append((begins[0], max(seen.last for seen in counted)))
        return spans


def _tokens_within(seen: Seen, begin: float, end: float) -> float:
    """Tokens of a stream that came between two moments."""
    came = float(seen.first_tokens) if begin <= seen.first < end else 0.0
    if seen.later:
        length = seen.last - seen.first
        within = min(end, seen.last) - max(begin, seen.first)
        came += seen.later * max(0.0, within) / length if length else 0.0
    return came


def read_samples(path: Path) -> dict[str, list[Measured]]:
    """Reads samples of a bench, by server; the one that was measured comes before its baseline.

    Args:
        path: A file that ``bench --samples`` wrote, or a folder of them.

    Raises:
        UsageError: There is none, or it is something else.
    """
    files = sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise UsageError(
            "there are no samples here", where=str(path), why=f"No {_SUFFIX} file", fix=_FIX
        )
    found: dict[str, dict[Level, dict[tuple[str, int], list[Seen]]]] = {}
    failed: dict[tuple[str, Level], int] = {}
    for file in files:
        for row, where in _rows(file):
            try:
                server, level = str(row["server"]), _level(row)
                rounds = found.setdefault(server, {}).setdefault(level, {})
                if row["error"] is not None:
                    failed[server, level] = failed.get((server, level), 0) + bool(row["counted"])
                    continue
                rounds.setdefault((file.name, int(row["round"])), []).append(_seen(row))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise UsageError(
                    "this line is no sample of a bench", where=where, why=repr(error), fix=_FIX
                ) from error
    return {
        server: [
            Measured(level, list(rounds.values()), failed.get((server, level), 0))
            for level, rounds in levels.items()
            if rounds
        ]
        for server, levels in found.items()
    }


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    try:
        text = read_utf8(file)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            "the samples cannot be read", where=str(file), why=why, fix=_FIX
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = parse_json(line)
        except JsonError as error:
            raise UsageError(
                "this line of the samples is no JSON", where=where, why=str(error), fix=_FIX
            ) from error
        if not isinstance(row, dict):
            raise UsageError("this line of the samples is no object", where=where, fix=_FIX)
        yield row, where


def _level(row: Mapping[str, Any]) -> Level:
    kind = str(row["load"])
    return Level(kind, float(row["concurrency"] if kind == CLOSED else row["rate"]))


def _seen(row: Mapping[str, Any]) -> Seen:
    arrivals, sent = row["arrivals"], float(row["sent_s"])
    planned = row["planned_s"]
    return Seen(
        planned=sent if planned is None else float(planned),
        sent=sent,
        first=float(arrivals[0][0]),
        last=float(arrivals[-1][0]),
        first_tokens=int(arrivals[0][1]),
        prompt=int(row["input_tokens"]),
        output=int(row["output_tokens"]),
        counted=bool(row["counted"]),
    )

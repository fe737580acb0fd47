"""Triton's own load generator, ``perf_analyzer``, on the same server in the same rounds."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.bench.asking import NO_END
from pipeline.bench.stats import percentile
from pipeline.bench.traffic.fleet import Server
from pipeline.bench.traffic.rounds import Round
from pipeline.bench.traffic.schedule import Level
from pipeline.bench.traffic.summary import estimate, median_ms, ratio
from pipeline.errors import MissingDependencyError, ServerError
from pipeline.verdict.estimate import Estimate

PROGRAM = "perf_analyzer"
_WINDOWS = 3
"""It compares its last three windows, and reports nothing before there are three."""
_LEAST_WINDOW_MS = 500
_SPARE = 3
"""How many times as many prompts it is given as it is expected to send: it begins anew after the
last one, and an engine that reuses KV blocks knows that one."""
_ANY = "999"
_ATTEMPTS = 3
_PATIENCE_S = 60.0
_SHOWN = 400
_SENT = re.compile(r'"timestamp"\s*:\s*(\d+)')
_CAME = re.compile(r'"response_timestamps"\s*:\s*\[([\d,\s]*)\]')


@dataclass(frozen=True)
class PeerVisit:
    """What the tool found in one round.

    Attributes:
        requests: How many were counted.
        requests_per_second: Of those that ended behind the warm-up, by its export of every request.
        latency_p50_ms: The median of a request's time, by the same.
        ttft_p50_ms: The median time of the first response, by the same.
        reported_per_second: What it says itself, with the beginning of the load in it.
        reported_p50_ms: The same of a request's time.
    """

    requests: int
    requests_per_second: float
    latency_p50_ms: float
    ttft_p50_ms: float
    reported_per_second: float
    reported_p50_ms: float


def find_peer() -> str:
    """Finds the program.

    Raises:
        MissingDependencyError: It is not on the path.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise MissingDependencyError(
            f"{PROGRAM} is not on the path",
            why="What PyPI has as perf-analyzer 0.1.0 is without the program",
            fix="Take it from Triton's SDK container or the wheel of tritonclient 2.51.0, as "
            "docs/bench.md says",
        )
    return found


class Peer:
    """Runs the program; one instance for one server.

    Args:
        program: Its path.
        server: Where load is sent; without TLS and headers.
        model: The Triton model.

    Attributes:
        visits: What it found, by level.
    """

    name = PROGRAM

    def __init__(self, program: str, server: Server, model: str) -> None:
        self._program, self._server, self._model = program, server, model
        self._rates: dict[Level, float] = {}
        self.visits: dict[Level, list[PeerVisit]] = {}

    def know(self, level: Level, requests_per_second: float) -> None:
        """Keeps about how many requests a level sends."""
        self._rates[level] = requests_per_second

    def visit(
        self, level: Level, texts: Iterator[tuple[str, int]], seconds: float, warmup: float
    ) -> None:
        """Measures one round, anew and for twice as long where it found nothing.

        Args:
            level: A closed loop.
            texts: Prompts with the tokens of their answers; as many as are needed are taken.
            seconds: How long.
            warmup: Seconds in front of it that are left out.

        Raises:
            ServerError: The program failed.
        """
        for attempt in range(_ATTEMPTS):
            last = attempt + 1 == _ATTEMPTS
            # On a busy machine no request may end in a window, and then it gives up.
            with contextlib.nullcontext() if last else contextlib.suppress(ServerError):
                found = self._try(level, texts, seconds * 2**attempt, warmup)
                self.visits.setdefault(level, []).append(found)
                return

    def _try(
        self, level: Level, texts: Iterator[tuple[str, int]], seconds: float, warmup: float
    ) -> PeerVisit:
        lasts = seconds + warmup
        expected = _SPARE * self._rates[level] * lasts + _SPARE * level.amount
        wanted = list(islice(texts, max(math.ceil(expected), 1)))
        with tempfile.TemporaryDirectory(prefix="trtllm-pipeline-") as folder:
            place = Path(folder)
            (place / "in.json").write_text(json.dumps({"data": list(map(_row, wanted))}))
            window = max(_LEAST_WINDOW_MS, round(lasts * 1000 / _WINDOWS))
            command = [
                *(self._program, "-m", self._model, "-u", self._server.url.removeprefix("grpc://")),
                *("-i", "grpc", "--streaming", "--async", "--input-data", "in.json"),
                *(
                    "--concurrency-range",
                    f"{level.amount:g}",
                    "--measurement-interval",
                    f"{window}",
                ),
                # Any three windows will do: the intervals come from the rounds.
                *("--max-trials", f"{_WINDOWS}", "--stability-percentage", _ANY),
                *("--percentile", "50", "-f", "out.csv", "--profile-export-file", "export.json"),
            ]
            try:
                done = subprocess.run(
                    command,
                    cwd=place,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=lasts * _WINDOWS + _PATIENCE_S,
                    check=False,
                )
                found = _found(place, warmup)
            except (OSError, ValueError, LookupError, subprocess.TimeoutExpired) as error:
                said = (
                    ""
                    if isinstance(error, subprocess.TimeoutExpired)
                    else done.stdout + done.stderr
                )
                lines = said[-_SHOWN:].strip().splitlines()
                raise ServerError(
                    f"{PROGRAM} measured nothing at {level.amount:g} streams",
                    where=self._server.url,
                    why=f"{error}; it said: {lines[-1].strip()}" if lines else str(error),
                    fix="Leave --perf-analyzer out, or mend what it says",
                ) from error
        return found


def _row(text: tuple[str, int]) -> dict[str, Any]:
    prompt, tokens = text
    values = {
        "text_input": prompt,
        "max_tokens": tokens,
        "stream": True,
        "end_id": NO_END,
        "top_k": 1,
        # What the client here asks for as well, so that the server has the same work.
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    return {name: {"content": [value], "shape": [1]} for name, value in values.items()}


def _found(place: Path, warmup: float) -> PeerVisit:
    with (place / "out.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    text = (place / "export.json").read_text(encoding="utf-8", errors="replace")
    return counted(
        [(sent, came) for sent, came in exported(text) if came],
        warmup,
        reported_per_second=float(row["Inferences/Second"]),
        reported_p50_ms=float(row["p50 latency"]) / 1000,
    )


def counted(
    requests: Sequence[tuple[int, Sequence[int]]],
    warmup: float,
    *,
    reported_per_second: float,
    reported_p50_ms: float,
) -> PeerVisit:
    """Counts as a round does here: the program has no warm-up of its own.

    Args:
        requests: Nanoseconds of sending and of each response.
        warmup: Seconds in front that are left out.
        reported_per_second: What the program says.
        reported_p50_ms: What the program says.

    Raises:
        ValueError: No request was sent and ended behind the warm-up.
    """
    begin = min(sent for sent, _ in requests) + round(warmup * 1e9)
    end = max(came[-1] for _, came in requests)
    kept = [(sent, came) for sent, came in requests if sent >= begin]
    if not kept:
        msg = "every request of it was sent in the warm-up"
        raise ValueError(msg)
    ended = sum(came[-1] >= begin for _, came in requests)
    return PeerVisit(
        requests=len(kept),
        requests_per_second=ended / (end - begin) * 1e9,
        latency_p50_ms=percentile([(came[-1] - sent) / 1e6 for sent, came in kept], 50),
        ttft_p50_ms=percentile([(came[0] - sent) / 1e6 for sent, came in kept], 50),
        reported_per_second=reported_per_second,
        reported_p50_ms=reported_p50_ms,
    )


def exported(text: str) -> list[tuple[int, list[int]]]:
    """Reads when requests were sent and their responses came, from the program's export.

    The export has the outputs as well, and where a response has no such output, what lay in memory.
    A number that is none is not written at all, and then the file is no JSON; so the times are
    looked for in its text. Quotes in prompts and answers are escaped and look different.

    Args:
        text: What is in the file.

    Returns:
        Nanoseconds of sending and of each response, by request.

    Raises:
        ValueError: There is no request in it.
    """
    sent = [int(found[1]) for found in _SENT.finditer(text)]
    responses = [
        [int(number) for number in found[1].split(",") if number.strip()]
        for found in _CAME.finditer(text)
    ]
    if not sent or len(sent) != len(responses):
        msg = f"its export has {len(sent)} requests and {len(responses)} answers"
        raise ValueError(msg)
    return list(zip(sent, responses, strict=True))


def peer_row(level: Level, own: Sequence[Round], other: Sequence[PeerVisit]) -> dict[str, Any]:
    """Puts both tools' numbers of a level side by side.

    Args:
        level: The load.
        own: What was measured here.
        other: What the program found in the same rounds.

    Returns:
        JSON values: for ``requests_per_second``, ``latency_p50_ms`` and ``ttft_p50_ms`` the
        estimates ``own`` and ``perf_analyzer``, and ``ratio``, its over ours by round; the values
        are None where nothing ended in a round.
    """
    medians: dict[str, list[float | None]] = {
        name: [median_ms(one.timelines, name) for one in own] for name in ("latency_ms", "ttft_ms")
    }
    pairs: dict[str, tuple[Sequence[float | None], Sequence[float | None]]] = {
        "requests_per_second": (
            [one.requests_per_second for one in own],
            [visit.requests_per_second for visit in other],
        ),
        "latency_p50_ms": (medians["latency_ms"], [visit.latency_p50_ms for visit in other]),
        "ttft_p50_ms": (medians["ttft_ms"], [visit.ttft_p50_ms for visit in other]),
    }
    return {
        "concurrency": int(level.amount),
        "requests": sum(visit.requests for visit in other),
        "reported": {
            "requests_per_second": estimate([visit.reported_per_second for visit in other]),
            "latency_p50_ms": estimate([visit.reported_p50_ms for visit in other]),
        },
        **{
            name: {
                "own": estimate(ours),
                "perf_analyzer": estimate(theirs),
                "ratio": (ratio(theirs, ours) or Estimate(None)).as_dict(),
            }
            for name, (ours, theirs) in pairs.items()
        },
    }

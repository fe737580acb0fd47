"""Triton's own load generator, ``perf_analyzer``, on the same server in the same rounds."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.bench.asking import NO_END
from pipeline.bench.intervals import over_rounds, paired_ratio
from pipeline.bench.stats import percentile
from pipeline.bench.traffic.fleet import Server
from pipeline.bench.traffic.rounds import Round
from pipeline.bench.traffic.schedule import Level
from pipeline.errors import MissingDependencyError, ServerError

PROGRAM = "perf_analyzer"
_WINDOWS = 3
"""It compares its last three windows, and reports nothing before there are three."""
_LEAST_WINDOW_MS = 500
_SPARE = 3
"""How many times as many prompts it is given as it is expected to send: it begins anew after the
last one, and an engine that reuses KV blocks knows that one."""
_ANY = "999"
_PATIENCE_S = 300.0
_SHOWN = 400


@dataclass(frozen=True)
class PeerVisit:
    """What the tool found in one round.

    Attributes:
        requests: How many it measured.
        requests_per_second: As it says.
        latency_ms: Percentiles of a request's time by ``p50``, ``p90``, ``p95``, ``p99``, as it
            says.
        ttft_p50_ms: The median time of the first response, from its export of every response.
    """

    requests: int
    requests_per_second: float
    latency_ms: Mapping[str, float]
    ttft_p50_ms: float


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

    def visit(self, level: Level, texts: Iterator[tuple[str, int]], seconds: float) -> None:
        """Measures one round.

        Args:
            level: A closed loop.
            texts: Prompts with the tokens of their answers; as many as are needed are taken.
            seconds: How long.

        Raises:
            ServerError: The program failed.
        """
        expected = _SPARE * self._rates[level] * seconds + _SPARE * level.amount
        wanted = list(islice(texts, max(math.ceil(expected), 1)))
        with tempfile.TemporaryDirectory(prefix="trtllm-pipeline-") as folder:
            place = Path(folder)
            (place / "in.json").write_text(json.dumps({"data": list(map(_row, wanted))}))
            window = max(_LEAST_WINDOW_MS, round(seconds * 1000 / _WINDOWS))
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
                    timeout=seconds * _WINDOWS + _PATIENCE_S,
                    check=False,
                )
                found = _found(place)
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
                    why=lines[-1].strip() if lines else str(error),
                    fix="Leave --perf-analyzer out, or mend what it says",
                ) from error
        self.visits.setdefault(level, []).append(found)


def _row(text: tuple[str, int]) -> dict[str, Any]:
    prompt, tokens = text
    values = {
        "text_input": prompt,
        "max_tokens": tokens,
        "stream": True,
        "end_id": NO_END,
        "top_k": 1,
    }
    return {name: {"content": [value], "shape": [1]} for name, value in values.items()}


def _found(place: Path) -> PeerVisit:
    with (place / "out.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    (experiment,) = json.loads((place / "export.json").read_text(encoding="utf-8"))["experiments"]
    firsts = [
        (request["response_timestamps"][0] - request["timestamp"]) / 1e6
        for request in experiment["requests"]
        if request["response_timestamps"]
    ]
    return PeerVisit(
        requests=len(experiment["requests"]),
        requests_per_second=float(row["Inferences/Second"]),
        latency_ms={f"p{n}": float(row[f"p{n} latency"]) / 1000 for n in (50, 90, 95, 99)},
        ttft_p50_ms=percentile(firsts, 50),
    )


def peer_row(level: Level, own: Sequence[Round], other: Sequence[PeerVisit]) -> dict[str, Any]:
    """Puts both tools' numbers of a level side by side.

    Args:
        level: The load.
        own: What was measured here.
        other: What the program found in the same rounds.

    Returns:
        JSON values: for ``requests_per_second``, ``latency_p50_ms`` and ``ttft_p50_ms`` the
        estimates ``own`` and ``perf_analyzer``, and ``ratio``, its over ours, paired by round.
    """
    pairs = {
        "requests_per_second": (
            [one.requests_per_second for one in own],
            [visit.requests_per_second for visit in other],
        ),
        "latency_p50_ms": (
            [percentile([t.latency_s * 1000 for t in one.timelines], 50) for one in own],
            [visit.latency_ms["p50"] for visit in other],
        ),
        "ttft_p50_ms": (
            [percentile([t.ttft_s * 1000 for t in one.timelines], 50) for one in own],
            [visit.ttft_p50_ms for visit in other],
        ),
    }
    return {
        "concurrency": int(level.amount),
        "requests": sum(visit.requests for visit in other),
        **{
            name: {
                "own": over_rounds(ours).as_dict(),
                "perf_analyzer": over_rounds(theirs).as_dict(),
                "ratio": paired_ratio(theirs, ours).as_dict(),
            }
            for name, (ours, theirs) in pairs.items()
        },
    }

"""Builds and samples for the tests of ``capacity``, with numbers that are known."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.economics.capacity.server import Front, Limits, Server, Steps
from pipeline.economics.capacity.simulation import Run, run_closed, run_open

LIMITS = Limits(slots=32, kv_blocks=512, block_tokens=32, step_tokens=256, queue=256)
KNOWN = Server(Steps(0.002, 0.0003, 0.00004, 0.001), Front(0.004, 0.003), LIMITS)


def sizes(seed: int, prompts: tuple[int, int] = (20, 200)) -> Iterator[tuple[int, int]]:
    source = random.Random(seed)
    while True:
        yield source.randint(*prompts), source.randint(10, 80)


def rows_of(
    run: Run,
    *,
    level: float,
    kind: str = "closed",
    number: int = 1,
    server: str = "server",
    warmup: float = 1.0,
) -> list[dict[str, Any]]:
    """What ``bench --samples`` would write of a run; docs/bench.md has the keys."""
    made = []
    for job in run.jobs:
        assert job.first is not None
        assert job.ended is not None
        arrivals = [[round(job.first, 6), 1]]
        if job.output > 1:
            arrivals.append([round(job.ended, 6), job.output - 1])
        made.append(
            {
                "server": server,
                "load": kind,
                "concurrency": int(level) if kind == "closed" else None,
                "rate": None if kind == "closed" else level,
                "round": number,
                "counted": job.arrived >= warmup,
                "request": job.number,
                "planned_s": None if kind == "closed" else job.arrived,
                "sent_s": job.arrived,
                "input_tokens": job.prompt,
                "output_tokens": job.output,
                "error": None,
                "message": None,
                "arrivals": arrivals,
            }
        )
    return made


def samples(
    path: Path,
    server: Server = KNOWN,
    streams: Sequence[int] = (1, 8),
    rates: Sequence[float] = (),
    *,
    names: Sequence[str] = ("server",),
    prompts: tuple[int, int] = (20, 200),
) -> Path:
    """A file of samples that a known server would give."""
    rows = []
    for number in (1, 2):
        for level in streams:
            for name in names:
                run = run_closed(server, level, sizes(number * 100 + level, prompts), 6.0)
                rows += rows_of(run, level=level, number=number, server=name)
        for rate in rates:
            source = random.Random(f"{rate} {number}")
            drawn, at, arrivals = sizes(number, prompts), 0.0, []
            while at < 6.0:
                at += source.expovariate(rate)
                arrivals.append((at, *next(drawn)))
            run = run_open(server, 1, arrivals)
            rows += rows_of(run, level=rate, kind="open", number=number)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path

"""The options of ``bench`` that make a load of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import new_file
from pipeline.errors import UsageError

_PANEL = "Load from client processes"
SECONDS = 30.0
WHOLE_TRACE = 1e9
"""Seconds that no trace lasts: without --duration it is sent whole."""


@dataclass(frozen=True)
class LoadOptions:
    """What is sent from client processes of their own, for how long, and what is kept of it.

    Attributes:
        clients: Processes that send; None for one.
        duration: Seconds measured; None for the default.
        rate: Requests per second, each a number or several with commas.
        trace: When requests come and how long they are.
        goodput: Latency objectives.
        samples: Where what every request measured goes.
        against: A second server: its address, or a repository.
        perf_analyzer: Whether Triton's tool measures the same.
        warmup: Seconds in front of each round that are left out.
        seed: Of what is drawn.
    """

    clients: Annotated[
        int | None,
        typer.Option(
            help="Processes that send; 1 by default.", rich_help_panel=_PANEL, show_default=False
        ),
    ] = None
    duration: Annotated[
        float | None,
        typer.Option(
            help="Seconds measured at each load, all rounds together; 30 by default, or a whole "
            "trace.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PER_SECOND,...",
            help="Open loop: requests per second, with Poisson arrivals.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of timestamp (ms), input_length and output_length, as Mooncake's traces.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    goodput: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:MS,...",
            help="Count requests within latency objectives, e.g. ttft:300,itl:30; also e2el.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Write what every request measured: .jsonl or .csv.",
            rich_help_panel=_PANEL,
            callback=new_file,
        ),
    ] = None
    against: Annotated[
        str | None,
        typer.Option(
            metavar="URL|DIR",
            help="Measure a second server in turns, and print ratios over it.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    perf_analyzer: Annotated[
        bool,
        typer.Option(
            "--perf-analyzer",
            help="Let Triton's perf_analyzer measure the same, and print both.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    warmup: Annotated[
        float,
        typer.Option(help="Seconds in front of each round left out.", rich_help_panel=_PANEL),
    ] = 1.0
    seed: Annotated[
        int, typer.Option(help="Of arrivals, lengths and order.", rich_help_panel=_PANEL)
    ] = 0

    @property
    def given(self) -> bool:
        """Whether any of them asks for a load."""
        values = (self.clients, self.duration, self.rate, self.trace, self.goodput, self.samples)
        return any(value is not None for value in (*values, self.against)) or self.perf_analyzer

    @property
    def replays(self) -> bool:
        """Whether a trace decides when requests come."""
        return self.trace is not None and self.rate is None

    @property
    def seconds(self) -> float:
        """Seconds measured.

        Raises:
            UsageError: They are not above 0, or no number.
        """
        if self.duration is None:
            return WHOLE_TRACE if self.replays else SECONDS
        if not (math.isfinite(self.duration) and self.duration > 0):
            raise UsageError(f"--duration must be above 0 seconds, not {self.duration:g}")
        return self.duration

    @property
    def rates(self) -> list[float]:
        """The numbers of ``--rate``, each once.

        Raises:
            UsageError: One is no number above 0.
        """
        words = [word.strip() for part in self.rate or () for word in part.split(",")]
        try:
            rates = [float(word) for word in words]
        except ValueError:
            rates = []
        if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise UsageError(
                f"--rate {','.join(words)} is no list of rates",
                fix="Give requests per second above 0, e.g. --rate 2,4,8",
            )
        return list(dict.fromkeys(rates))

"""What the build's report says about loading and speed, and the times that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RepositoryError, cause
from pipeline.manifests.build import Build
from pipeline.serving import REPORT

LOOK_EVERY_S = 5
"""Seconds between two looks at a server that is loading."""

FEWEST_LOOKS = 120
"""Looks that a loading server gets at least, ten minutes: a node's disk or network may be far
slower than where loading was measured, and a server given up too early never becomes ready."""

PATIENCE = 3
"""How much longer than measured loading may take."""

SPARE = 1.2
"""Of the longest request: a fifth more, for its prompt and for those that came just before."""

CLEAR_UP_S = 15
"""Seconds that a stopped server has for unloading before it is killed."""

SLOWEST_TOKEN_S = 0.1
"""Seconds from token to token that are assumed where nothing was measured."""


@dataclass(frozen=True)
class Measured:
    """What is known of the speed of a build.

    Attributes:
        load_s: Seconds until every model was ready; None where it was not measured.
        longest_answer: Tokens of the longest answer that the engine has room for.
        full_batch: Sequences that the engine takes at once.
        token_s: Seconds from token to token at the highest load that was measured, of the slowest
            twentieth; None where there was no load test.
        at: How many streams that load was.
        tokens_per_second: What that load gave; None likewise.
        memory: Bytes that the server took; None where it was not measured.
        cpus: Processors of the machine that was measured.
    """

    load_s: float | None
    longest_answer: int
    full_batch: int
    token_s: float | None
    at: int
    tokens_per_second: float | None
    memory: int | None
    cpus: int | None

    @property
    def slowest_token_s(self) -> float:
        """Seconds from token to token of a full batch.

        A step of a batch n times as large takes n times as long at most, so that is what the
        measured load is taken to be worth at :attr:`full_batch`.
        """
        if self.token_s is None:
            return SLOWEST_TOKEN_S
        return self.token_s * max(1.0, self.full_batch / self.at)

    @property
    def looks(self) -> int:
        """The startup probe's failure threshold: PATIENCE x load / LOOK_EVERY_S, rounded up."""
        looks = math.ceil(PATIENCE * (self.load_s or 0.0) / LOOK_EVERY_S)
        return max(FEWEST_LOOKS, looks)

    @property
    def exit_timeout_s(self) -> int:
        """Seconds for requests in flight: longest answer x slowest token x SPARE, rounded up."""
        return max(1, math.ceil(self.longest_answer * self.slowest_token_s * SPARE))


def measured(build: Build, sizes: Mapping[str, Any]) -> Measured:
    """Reads the report of a build.

    Args:
        build: The build, whose report may be empty.
        sizes: ``build_config`` of its engine.

    Raises:
        RepositoryError: The report has something else in the place of its numbers.
    """
    try:
        return _measured(build, sizes)
    except (KeyError, TypeError, ValueError) as error:
        raise RepositoryError(
            "the report beside the repository does not say what was measured",
            where=str(build.repository.resolve().parent / REPORT),
            why=cause(error),
            fix="Run the recipe again, which writes it anew",
        ) from error


def _measured(build: Build, sizes: Mapping[str, Any]) -> Measured:
    load = build.section("load")
    levels = [level for level in load.get("measurements") or () if isinstance(level, Mapping)]
    highest = max(levels, key=lambda level: level["concurrency"], default=None)
    ready = build.section("conformance").get("ready_seconds")
    memory, cpus = load.get("memory_bytes"), build.section("machine").get("cpus")
    return Measured(
        load_s=None if ready is None else float(ready),
        # One token at least is the prompt's.
        longest_answer=int(sizes["max_seq_len"]) - 1,
        full_batch=int(sizes["max_batch_size"]),
        # A model that answers once tells no time between tokens.
        token_s=None
        if highest is None or not highest["itl_ms"]
        else highest["itl_ms"]["p95"] / 1000,
        at=1 if highest is None else int(highest["concurrency"]),
        tokens_per_second=None if highest is None else highest["tokens_per_second"]["value"],
        memory=None if memory is None else int(memory),
        cpus=None if cpus is None else int(cpus),
    )

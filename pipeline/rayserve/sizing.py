"""How much a replica takes at a time and how long its streams last, from what was built.

Everything is read from the repository, and from the report beside it where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RepositoryError
from pipeline.manifests.build import Build
from pipeline.reading.json_text import read_json
from pipeline.triton.checks import read_config
from pipeline.triton.parameters import ENGINE_DIR, UNLIMITED_QUEUE
from pipeline.triton.tensors import ENGINE

BUSY = 0.7
"""Share of an engine's sequences at which another replica is wanted."""
SPARE = 1.2
"""On the time of the longest stream, for prompts that are computed meanwhile."""
SHORTEST_S = 30
"""Seconds that a stream is taken to last at least: what was measured is no promise."""
UNMEASURED_S = 600
"""Seconds of the longest stream where nothing was measured."""


@dataclass(frozen=True)
class Size:
    """What one replica is good for.

    Attributes:
        sequences: That its engine decodes together.
        queue: Requests that may wait for it.
        tokens: Of the longest sequence, prompt and answer.
        longest_s: Seconds that the longest stream lasts in a full batch, whole.
        measured: Whether ``longest_s`` comes from a measurement.
        ranks: Processes of the engine, each with a GPU where the target has GPUs.
    """

    sequences: int
    queue: int
    tokens: int
    longest_s: int
    measured: bool
    ranks: int

    @property
    def target(self) -> float:
        """Requests per replica that autoscaling aims at."""
        return max(1.0, round(self.sequences * BUSY, 1))


def size_of(build: Build) -> Size:
    """Reads what a replica of a build is good for.

    Raises:
        RepositoryError: The engine's files do not say.
    """
    place = build.repository / ENGINE_DIR / "config.json"
    try:
        config = read_json(place, finite=False)
        limits = config["build_config"]
        sequences, tokens = int(limits["max_batch_size"]), int(limits["max_seq_len"])
        ranks = int(config["pretrained_config"]["mapping"]["world_size"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RepositoryError(
            "the engine does not say how many sequences it takes and how long they are",
            where=str(place),
            why=f"{type(error).__name__}: {error}",
            fix="Run its recipe again, which deploys it afresh",
        ) from error
    measured = _longest_s(build.section("load"), sequences, tokens)
    return Size(
        sequences=sequences,
        queue=_queue(build),
        tokens=tokens,
        longest_s=measured or UNMEASURED_S,
        measured=measured is not None,
        ranks=ranks,
    )


def _queue(build: Build) -> int:
    config, _ = read_config(build.repository / ENGINE / "config.pbtxt")
    text = config.parameters["max_queue_size"].string_value if config is not None else ""
    return int(text) if text.isdecimal() and int(text) else UNLIMITED_QUEUE


def _longest_s(load: Mapping[str, Any], sequences: int, tokens: int) -> int | None:
    """Seconds of a stream of ``tokens`` in a full batch, from the load with the most streams.

    A batch that is larger than what was measured is taken to be slower in proportion. It is no
    slower than that: an engine of which that were true would gain nothing by batching.
    """
    try:
        most = max(load["measurements"], key=lambda row: int(row["concurrency"]))
        per_token_ms, first_ms = float(most["itl_ms"]["p99"]), float(most["ttft_ms"]["max"])
        fuller = max(1.0, sequences / int(most["concurrency"]))
    except (KeyError, TypeError, ValueError):
        return None
    seconds = (first_ms + per_token_ms * tokens) * fuller * SPARE / 1000
    return max(SHORTEST_S, math.ceil(seconds)) if math.isfinite(seconds) else None

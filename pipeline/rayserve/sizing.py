"""How much a replica takes at a time and how long its streams last, from what was built."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RepositoryError, cause
from pipeline.manifests.build import Build
from pipeline.manifests.measured import measured
from pipeline.reading.json_text import read_json
from pipeline.targets import get_target
from pipeline.triton.checks import read_config
from pipeline.triton.parameters import ENGINE_DIR, UNLIMITED_QUEUE
from pipeline.triton.tensors import ENGINE

BUSY = 0.7
"""Share of an engine's sequences at which another replica is wanted."""
SHORTEST_S = 30
"""Seconds that the longest stream is taken to last at least: what was measured is no promise."""


@dataclass(frozen=True)
class Size:
    """What one replica is good for.

    Attributes:
        sequences: That its engine decodes together.
        queue: Requests that may wait for it.
        longest_s: Seconds that the longest stream lasts in a full batch.
        gpus: That it takes; 0 where its target has none.
    """

    sequences: int
    queue: int
    longest_s: int
    gpus: int

    @property
    def target(self) -> float:
        """Requests per replica that autoscaling aims at."""
        return max(1.0, round(self.sequences * BUSY, 1))


def size_of(build: Build) -> Size:
    """Reads what a replica of a build is good for.

    Raises:
        RepositoryError: The engine's files do not say.
        UnsupportedError: No known image can read the engine.
    """
    place = build.repository / ENGINE_DIR / "config.json"
    try:
        limits = read_json(place)["build_config"]
        speed = measured(build, limits)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RepositoryError(
            "the engine does not say how many sequences it takes and how long they are",
            where=str(place),
            why=cause(error),
            fix="Run its recipe again, which deploys it afresh",
        ) from error
    return Size(
        sequences=speed.full_batch,
        queue=_queue(build),
        longest_s=max(SHORTEST_S, speed.exit_timeout_s),
        gpus=get_target(build.target).contained(build.repository, "0").gpus,
    )


def _queue(build: Build) -> int:
    config, _ = read_config(build.repository / ENGINE / "config.pbtxt")
    text = config.parameters["max_queue_size"].string_value if config is not None else ""
    return int(text) if text.isdecimal() and int(text) else UNLIMITED_QUEUE

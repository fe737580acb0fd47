"""The load of a ladder: every repository served at once and measured in turns."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.client_errors import client_errors
from pipeline.ladder.shapes import Load, misfit
from pipeline.progress import Progress
from pipeline.reading.json_text import read_json
from pipeline.recipe.schema import Recipe
from pipeline.serving import open_server
from pipeline.source.texts import text_digest
from pipeline.stages.bench import TEXT_KEY, machine, measured_with, prompts_from
from pipeline.store.artifact import Artifact
from pipeline.store.digests import digest_of

CONCURRENCY = (1, 8, 32)
SECONDS = 30.0
_SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second", "memory_bytes")


@dataclass(frozen=True)
class Settings:
    """How the load is measured.

    Attributes:
        concurrency: Streams kept open together; one level each.
        seconds: Measured time of each server, at least.
    """

    concurrency: tuple[int, ...] = CONCURRENCY
    seconds: float = SECONDS

    def with_level(self, level: int | None) -> Settings:
        """Returns the same with one more level, the one that the constraints are about."""
        levels = {*self.concurrency, *([level] if level else [])}
        return replace(self, concurrency=tuple(sorted(levels)))

    def key(self, recipe: Recipe, repositories: Mapping[str, Artifact], baseline: str) -> str:
        """Digests all that decides the numbers but the moment.

        Args:
            recipe: Says how long answers are and where prompts come from.
            repositories: What is served, by rung.
            baseline: The rung that the others are compared with.
        """
        return digest_of(
            {
                "servers": {name: artifact.digest for name, artifact in repositories.items()},
                "baseline": baseline,
                "concurrency": list(self.concurrency),
                "seconds": self.seconds,
                "output_tokens": recipe.bench.output_tokens,
                "max_input_len": recipe.compile.max_input_len,
                "text": text_digest(recipe, TEXT_KEY),
                **measured_with(),
            }
        )


@dataclass(frozen=True)
class Loaded:
    """What an interleaved run gave.

    Attributes:
        key: From :meth:`Settings.key`.
        created: When it was measured.
        machine: Where.
        settings: How.
        rounds: How often every server was visited at every level.
        servers: What each gave, by rung.
        reused: Whether it was measured by an earlier comparison.
    """

    key: str
    created: str
    machine: Mapping[str, Any]
    settings: Settings
    rounds: int
    servers: Mapping[str, Mapping[str, Any]]
    reused: bool

    def as_dict(self) -> dict[str, Any]:
        """Returns all but what the rungs hold, as JSON values."""
        return {
            "key": self.key,
            "created": self.created,
            "machine": dict(self.machine),
            "concurrency": list(self.settings.concurrency),
            "seconds": self.settings.seconds,
            "rounds": self.rounds,
            "reused": self.reused,
        }


def measured_before(path: Path, key: str, rungs: Collection[str]) -> Loaded | None:
    """Finds the load of an earlier comparison; None where it was another, or there is none.

    Args:
        path: The comparison's JSON.
        key: From :meth:`Settings.key`.
        rungs: The names of those that are loaded; all of them must be there.
    """
    try:
        before = read_json(path, finite=False)
        load = before["load"]
        if load["key"] != key:
            return None
        servers = {
            rung["name"]: {
                "measurements": rung["load"],
                **{name: rung[name] for name in _SPEEDS},
            }
            for rung in before["rungs"]
            if rung["load"]
        }
        if set(servers) != set(rungs) or any(misfit(Load, one) for one in servers.values()):
            return None
        settings = Settings(tuple(load["concurrency"]), load["seconds"])
        return Loaded(
            key, load["created"], load["machine"], settings, load["rounds"], servers, reused=True
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # a file that was cut or changed is measured again


def measured_again(
    recipe: Recipe,
    repositories: Mapping[str, Artifact],
    baseline: str,
    *,
    settings: Settings,
    key: str,
    logs: Path,
    progress: Progress,
) -> Loaded:
    """Starts a server for every repository and loads them in turns.

    Args:
        recipe: Says how long answers are and where prompts come from.
        repositories: What to serve, by rung.
        baseline: The rung that the others are compared with.
        settings: The levels and how long.
        key: From :meth:`Settings.key`.
        logs: The folder of the servers' logs.
        progress: Is told how far it is.

    Raises:
        ServerError: A server did not start, or a request failed.
        UnsupportedError: This machine cannot serve the target.
    """
    from pipeline.bench.interleaved import measure_interleaved

    logs.mkdir(parents=True, exist_ok=True)
    source = Path(recipe.evaluate.text) if recipe.evaluate else None
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with client_errors(), ExitStack() as stack:
        urls = {}
        for name, artifact in repositories.items():
            server = open_server(
                artifact.path, logs / f"{name}.log", target=str(artifact.facts["target"])
            )
            urls[name] = stack.enter_context(server).url
        words = f"load test of {len(urls)} servers in turns"
        task = stack.enter_context(progress.task(words, 1.0))
        done = 0.0

        def on_round(_number: int, share: float) -> None:
            nonlocal done
            share = min(share, 1.0)
            task.advance(share - done)
            done = share

        measured = measure_interleaved(
            urls,
            baseline=baseline,
            concurrency=settings.concurrency,
            seconds=settings.seconds,
            output_tokens=recipe.bench.output_tokens,
            prompts=prompts_from(source, recipe.compile.max_input_len),
            on_round=on_round,
        )
    return Loaded(
        key, created, machine(), settings, measured["rounds"], measured["servers"], reused=False
    )

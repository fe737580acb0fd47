"""Kills servers under streams of token ids, and counts what clients see of it.

    python -m tests.faults.resume_proof --repository build/tiny-llama-int4-awq/repository

Parts, each with streams that are kept open, over the gateway's fleet with no HTTP in between:

* **ties**: every text is cut at many places and continued from there, with prompt and tokens so far
  as a new prompt, which computes at once what was computed token by token. How often it comes out
  otherwise says whether greedy texts can be resumed so.
* **kills**: one server with its watchdog; its engine's stub and tritonserver itself are killed with
  SIGKILL in turns, at random moments.
* **gateway**: the same, with OpenAI's own client over HTTP.
* **loss**: two servers, one of which is killed for good, together with whatever would restart it.

Texts are compared token by token with those of an undisturbed run. Fails, with exit code 1, where a
client sees an error or a text is another one. Prints a table, and writes everything as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.gateway.engine import Generation
from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.served import ServedEngine
from pipeline.serving import serving
from pipeline.tables import print_table
from pipeline.triton.watchdog import Backoff
from trtllm_client import InvalidRequest

from .over_http import OverHttp, gateway_of, resumes_over_http
from .resuming import (
    MOST_S,
    Got,
    Load,
    Verdict,
    Wanted,
    fleet_at,
    judge,
    resumes_of,
    undisturbed,
    wanted_texts,
)

# The watchdog's pause doubles with each restart within a minute, up to half a minute, so that a
# server that cannot live does not keep the machine busy. Kills a few seconds apart would measure
# that pause and nothing else.
CALM_S = 1.0
ENGINE = "tensorrt_llm"
CUT_EVERY = 16
PARTS = ("kills of one server", "kills behind the gateway", "loss of one of two")


@dataclass(frozen=True)
class Ties:
    """Texts that were cut and continued.

    Attributes:
        cuts: How often.
        different: How often another text came.
        again: Kinds of the texts that came out otherwise when they were made one at a time.
    """

    cuts: int
    different: int
    again: list[str]


def main() -> int:
    """Runs the proof; returns the exit code."""
    arguments = _parse()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**31)
    repository: Path = arguments.repository.resolve()
    texts = wanted_texts(repository, 2 * arguments.streams, arguments.tokens)
    found: dict[str, Any] = {
        "seed": seed,
        "streams": arguments.streams,
        "tokens": arguments.tokens,
        "kills": arguments.kills,
    }
    with tempfile.TemporaryDirectory(prefix="resume-proof-") as folder:
        found |= _work(arguments, repository, texts, Path(folder), random.Random(seed))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _show(found)
    print(f"\nAs JSON: {arguments.output}")
    return int(any(found[part]["errors"] or found[part]["different"] for part in PARTS))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--gateway-kills", type=int, default=10)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=400, help="of each text")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--output", type=Path, default=Path("build/resume-proof.json"))
    return parser.parse_args()


def _work(
    arguments: argparse.Namespace,
    repository: Path,
    texts: Sequence[Wanted],
    folder: Path,
    draw: random.Random,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    streams, policy = arguments.streams, Policy(resumes=20, wait_s=MOST_S)
    with serving(repository, folder / "one.log") as server:
        calm = asyncio.run(undisturbed(server.grpc_url, texts, streams))
        assert all(each.error is None for each in calm), [each.error for each in calm]
        found["ties"] = vars(asyncio.run(_ties(server.grpc_url, calm)))
        server._backoff = Backoff(calm_s=CALM_S)  # type: ignore[attr-defined]

        async def kills() -> Verdict:
            fleet = fleet_at([server.grpc_url], policy)
            killer = _Killer(server, fleet, arguments.kills, draw)
            try:
                got = await Load(fleet, texts, streams).run(killer.run)
            finally:
                await fleet.close()
            found["victims"] = killer.victims
            found["seconds"] = killer.seconds
            return judge(got, calm, resumes_of(fleet))

        found[PARTS[0]] = asyncio.run(kills()).as_dict()

        async def behind(url: str, calm: Sequence[Got]) -> Verdict:
            engine = OverHttp(url)
            killer = _Killer(server, None, arguments.gateway_kills, draw)
            try:
                got = await Load(engine, texts, streams).run(killer.run)
            finally:
                await engine.close()
            return judge(got, calm, resumes_over_http(url))

        with gateway_of(repository, [server.grpc_url], policy) as url:
            calm_there = asyncio.run(undisturbed(url, texts, streams, OverHttp))
            found[PARTS[1]] = asyncio.run(behind(url, calm_there)).as_dict()
        with serving(repository, folder / "other.log", watchdog=False) as other:

            async def loss() -> Verdict:
                fleet = fleet_at([server.grpc_url, other.grpc_url], policy)

                async def kill(load: Load) -> None:
                    while fleet.replicas()[1].streams < streams // 4:
                        await load.flowing()
                    await asyncio.sleep(draw.uniform(0, 1))
                    found["streams there"] = fleet.replicas()[1].streams
                    os.kill(_server_of(other), signal.SIGKILL)
                    await load.flowing()

                try:
                    got = await Load(fleet, texts, streams).run(kill)
                finally:
                    await fleet.close()
                return judge(got, calm, resumes_of(fleet))

            found[PARTS[2]] = asyncio.run(loss()).as_dict()
    return found


async def _ties(url: str, calm: Sequence[Got]) -> Ties:
    """Continues each greedy text from many places."""
    engine, room = ServedEngine(url), asyncio.Semaphore(16)
    greedy = [each for each in calm if "temperature" not in each.wanted.asked.inputs]

    async def rest(got: Got, kept: int) -> bool | None:
        asked = got.wanted.asked
        whole = Generation(
            asked.prompt + got.ids[:kept],
            asked.max_tokens - kept,
            asked.inputs,
            f"cut-{id(got)}-{kept}",
        )
        async with room:
            try:
                ids = [token async for tokens in engine.generate(whole) for token in tokens.ids]
            except InvalidRequest:
                return None  # too long a prompt
        return tuple(ids) == got.ids[kept:]

    try:
        cuts = [(got, kept) for got in greedy for kept in range(CUT_EVERY, len(got.ids), CUT_EVERY)]
        same = await asyncio.gather(*(rest(*cut) for cut in cuts))
    finally:
        await engine.close()
    again = await undisturbed(url, [each.wanted for each in calm], 1)
    both = zip(calm, again, strict=True)
    differ = [one.wanted.kind for one, other in both if one.ids != other.ids]
    return Ties(len(cuts) - same.count(None), same.count(False), differ)


class _Killer:
    """Kills the engine's stub and tritonserver in turns."""

    def __init__(self, server: Any, fleet: Fleet | None, kills: int, draw: random.Random) -> None:
        self._server, self._fleet, self._kills, self._draw = server, fleet, kills, draw
        self.victims: dict[str, int] = {}
        self.seconds: list[dict[str, float]] = []

    async def run(self, load: Load) -> None:
        killed, before = 0.0, self._server.health().restarts
        for number in range(self._kills):
            await load.flowing()
            if self.seconds:
                self.seconds[-1]["until all streams went on"] = time.monotonic() - killed
            await asyncio.sleep(self._draw.uniform(CALM_S, CALM_S + 2))
            health = self._server.health()
            stub = next(pid for pid, model in health.stubs.items() if model == ENGINE)
            name, pid = (ENGINE, stub) if number % 2 else ("tritonserver", _server_of(self._server))
            self.victims[name] = self.victims.get(name, 0) + 1
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            await self._until(partial(self._is_back, before + number + 1))
            ready = time.monotonic() - killed
            await self._until(self._is_seen)
            seen = time.monotonic() - killed
            self.seconds.append({"until it was ready": ready, "until that was seen": seen})
            print(f"\r{number + 1} of {self._kills} kills", end="", file=sys.stderr, flush=True)
        await load.flowing()
        print(file=sys.stderr)

    def _is_seen(self) -> bool:
        return self._fleet is None or self._fleet.replicas()[0].ready

    def _is_back(self, restarts: int) -> bool:
        return bool(self._server.health().restarts >= restarts)

    async def _until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + MOST_S
        while not condition():
            assert time.monotonic() < give_up, "the server does not come back"
            await asyncio.sleep(0.01)


def _server_of(server: Any) -> int:
    pid = server.health().pid
    assert pid is not None, "the server does not run"
    return int(pid)


def _show(found: dict[str, Any]) -> None:
    ties = found["ties"]
    print(
        f"\ncontinued from {ties['cuts']} places: {ties['different']} texts came out otherwise; "
        f"of an undisturbed run, one stream at a time: {len(ties['again'])}\n"
    )
    waits = {
        what: statistics.median(each[what] for each in found["seconds"] if what in each)
        for what in found["seconds"][0]
    }
    print("; ".join(f"{what} {wait:.2f} s" for what, wait in waits.items()), "(medians)\n")
    rows = []
    for part in PARTS:
        verdict = found[part]
        resumes = "\n".join(f"{name}: {count}" for name, count in verdict["resumes"].items())
        rows.append(
            (
                part,
                verdict["texts"],
                verdict["errors"],
                verdict["different"],
                verdict["longest_stall_s"],
                resumes,
            )
        )
    columns = ("part", "texts", "errors", "different", "longest stall, s", "resumes")
    print_table(columns, rows, lines=True)


if __name__ == "__main__":
    sys.exit(main())

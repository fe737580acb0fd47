"""Streams of token ids over a fleet while its servers are killed, and what became of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.gateway.engine import Engine, Generation, Input
from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.served import ServedEngine

from .asking import prompts

MOST_S = 300.0
"""Seconds after which a stream is taken to hang, on a machine that does a lot else."""

_LOG_PROBS: Mapping[str, Input] = {"return_log_probs": True}
_KINDS: Sequence[tuple[str, Mapping[str, Input]]] = (
    ("greedy", {}),
    ("sampled", {"temperature": 0.9, "runtime_top_p": 0.95}),
    ("greedy, with log probabilities", _LOG_PROBS),
    ("sampled, with log probabilities", {"temperature": 1.1, "runtime_top_k": 50, **_LOG_PROBS}),
)


@dataclass(frozen=True)
class Wanted:
    """A text that is asked for.

    Attributes:
        kind: In words.
        asked: The request, without an id.
    """

    kind: str
    asked: Generation


@dataclass
class Got:
    """What came of one request.

    Attributes:
        wanted: What was asked for.
        ids: Its tokens.
        scores: Their log probabilities.
        error: What it ended with; None for its end.
        longest_wait_s: The longest time without a token.
    """

    wanted: Wanted
    ids: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    error: Exception | None = None
    longest_wait_s: float = 0.0


def wanted_texts(repository: Path, count: int, tokens: int) -> list[Wanted]:
    """Makes requests of all kinds; no end id, so that each has all its tokens.

    Args:
        repository: Whose tokenizer makes tokens of the prompts.
        count: How many.
        tokens: Of each text.
    """
    from tokenizers import Tokenizer

    folder = repository / "preprocessing" / "1" / "tokenizer"
    tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text())
    made = []
    for number, prompt in enumerate(prompts(count)):
        kind, inputs = _KINDS[number % len(_KINDS)]
        if "temperature" in inputs:
            inputs = {**inputs, "seed": 1000 + number}
        ids = tuple(tokenizer.encode(prompt).ids)
        made.append(Wanted(kind, Generation(ids, tokens, dict(inputs))))
    return made


async def read(engine: Engine, wanted: Wanted, request_id: str, began: Callable[[], None]) -> Got:
    """Reads one text.

    Args:
        engine: Where from.
        wanted: What.
        request_id: Under which id.
        began: Called whenever something comes.
    """
    got, last = Got(wanted), time.monotonic()
    try:
        async for tokens in engine.generate(replace(wanted.asked, request_id=request_id)):
            now = time.monotonic()
            got.longest_wait_s, last = max(got.longest_wait_s, now - last), now
            got.ids += tokens.ids
            got.scores += tokens.log_probs or ()
            began()
    except Exception as error:  # noqa: BLE001 - is what is asked for
        got.error = error
    return got


async def undisturbed(
    url: str,
    texts: Sequence[Wanted],
    streams: int,
    connect: Callable[[str], Engine] = ServedEngine,
) -> list[Got]:
    """Reads each text once, so many at a time, from a server that nothing happens to."""
    engine, room = connect(url), asyncio.Semaphore(streams)

    async def one(number: int, wanted: Wanted) -> Got:
        async with room:
            return await read(engine, wanted, f"calm-{number}", lambda: None)

    try:
        return list(await asyncio.gather(*itertools.starmap(one, enumerate(texts))))
    finally:
        await engine.close()


@dataclass
class Load:
    """Streams that are kept open, one text after the other.

    Args:
        engine: Where from.
        texts: Taken in turns.
        streams: How many at a time.

    Attributes:
        got: What came, in the order of the ends.
    """

    engine: Engine
    texts: Sequence[Wanted]
    streams: int
    got: list[Got] = field(default_factory=list)
    _flowing: set[int] = field(default_factory=set)
    _stop: bool = False

    async def run(self, disturb: Callable[[Load], Awaitable[None]]) -> list[Got]:
        """Keeps the streams open while something is done; each text is read to its end."""
        slots = [asyncio.create_task(self._slot(number)) for number in range(self.streams)]
        try:
            await disturb(self)
        finally:
            self._stop = True
            await asyncio.wait_for(asyncio.gather(*slots), MOST_S)
        return self.got

    async def flowing(self) -> None:
        """Waits until something has come on every stream since now."""
        self._flowing.clear()
        give_up = time.monotonic() + MOST_S
        while len(self._flowing) < self.streams:
            assert time.monotonic() < give_up, f"only {len(self._flowing)} streams go on"
            await asyncio.sleep(0.01)

    async def _slot(self, slot: int) -> None:
        for turn in itertools.count():
            wanted = self.texts[(slot + turn * self.streams) % len(self.texts)]
            name = f"stream-{slot}-{turn}"
            self.got.append(await read(self.engine, wanted, name, lambda: self._flowing.add(slot)))
            if self._stop:
                return


@dataclass(frozen=True)
class Verdict:
    """What a run showed.

    Attributes:
        texts: That were read.
        errors: Of them, that ended with an error.
        different: Of them, that are not those of an undisturbed run.
        longest_stall_s: The longest time that a stream stood still.
        score_difference: The largest difference of a log probability.
        resumes: Attempts to go on by outcome and way.
        causes: What the errors said.
    """

    texts: int
    errors: int
    different: int
    longest_stall_s: float
    score_difference: float
    resumes: dict[str, int]
    causes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return dict(vars(self))


def judge(got: Sequence[Got], calm: Sequence[Got], resumes: Mapping[str, int]) -> Verdict:
    """Compares what came with an undisturbed run.

    Args:
        got: What came.
        calm: The same texts, undisturbed.
        resumes: Attempts to go on by outcome and way.
    """
    right = {id(each.wanted): each for each in calm}
    whole = [each for each in got if each.error is None]
    scores = [
        abs(a - b)
        for each in whole
        for a, b in zip(each.scores, right[id(each.wanted)].scores, strict=False)
    ]
    short = [each for each in whole if len(each.scores) != len(right[id(each.wanted)].scores)]
    assert not short, "there are not as many log probabilities as tokens"
    return Verdict(
        len(got),
        sum(each.error is not None for each in got),
        sum(each.ids != right[id(each.wanted)].ids for each in whole),
        max(each.longest_wait_s for each in got),
        max(scores, default=0.0),
        dict(resumes),
        sorted({str(each.error) for each in got if each.error is not None}),
    )


def fleet_at(urls: Sequence[str], policy: Policy) -> Fleet:
    """Makes a fleet of servers; inside a running loop."""
    fleet = Fleet(policy)
    for url in urls:
        fleet.add(url, ServedEngine(url))
    return fleet


def resumes_of(fleet: Fleet) -> dict[str, int]:
    """Returns a fleet's attempts to go on by outcome and way."""
    return {f"{outcome}, {how}": n for (outcome, how), n in fleet.counts.resumes.items()}

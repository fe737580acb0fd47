"""One client process: sends its part of each round over connections of its own.

It is started by :mod:`pipeline.bench.traffic.fleet` and reads JSON, one object a line:

* the servers, once; it answers ``{"ready": true}``
* a job: which server, what to send; it answers ``{"ready": true}`` when the prompts are made
* ``{"begin": T}``, on the clock that the processes of a machine share; it answers with what came

Where reading ends, so does the process. Addresses, headers and prompts come this way, and so no
list of processes shows them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from pipeline.bench.asking import now, streamed, whole
from pipeline.bench.prompts import PROMPTS, Prompts
from pipeline.engine_client.connect import connect_async
from pipeline.engine_client.interface import AsyncTextClient
from trtllm_client import ClientError, Tls

_DIGITS = 6
_LONG_S = 60.0
"""A trace is cut so late that its end tells nothing of how long it lasts."""


class _Job:
    """Sends the requests of one round."""

    def __init__(self, client: AsyncTextClient, job: Mapping[str, Any], prompts: Prompts) -> None:
        self._client, self._prompts = client, prompts
        self._ask = streamed if job["streams"] else whole
        self._level: int | None = job["level"]
        self._end: float = job["end"]
        self.least = min(self._end, _LONG_S)
        self._requests: Sequence[Sequence[Any]] = job["requests"]
        # Making a prompt when it is due would send it late.
        self._texts = [prompts.long(words) for _, _, words, _ in self._requests]
        self._answers: list[dict[str, Any]] = []

    async def run(self, begin: float) -> list[dict[str, Any]]:
        """Sends everything, and returns what came when all is there."""
        self._begin = begin
        await asyncio.sleep(max(0.0, begin - now()))
        if self._level is None:
            await self._planned()
        else:
            self._numbers = 0
            await asyncio.gather(*(self._stream() for _ in range(self._level)))
        return self._answers

    async def _planned(self) -> None:
        tasks = []
        for place, (_, at, _, _) in enumerate(self._requests):
            await asyncio.sleep(max(0.0, self._begin + at - now()))
            tasks.append(asyncio.create_task(self._send(place, self._texts[place])))
        await asyncio.gather(*tasks)

    async def _stream(self) -> None:
        # At least one, also where the machine is so busy that the round is over before it began.
        going = True
        while going:
            count = self._numbers
            self._numbers += 1
            place = count % len(self._requests)
            again = count >= len(self._requests)
            words = self._requests[place][2]
            text = self._prompts.long(words) if again else self._texts[place]
            if not await self._send(place, text):
                # A server that refuses at once is not asked as fast as it refuses.
                await asyncio.sleep(0.01)
            going = now() < self._begin + self._end

    async def _send(self, place: int, text: str) -> bool:
        number, _, _, tokens = self._requests[place]
        sent = now() - self._begin
        answer: dict[str, Any] = {"number": number, "sent": round(sent, _DIGITS)}
        try:
            timeline = await self._ask(self._client, text, tokens)
        except ClientError as error:
            answer["error"] = [type(error).__name__, str(error)]
        else:
            answer["input_tokens"] = timeline.input_tokens
            answer["arrivals"] = [
                [round(at - self._begin, _DIGITS), count] for at, count in timeline.arrivals
            ]
        self._answers.append(answer)
        return "error" not in answer


async def _work() -> None:
    lines = _Lines()
    setup = await lines.read()
    prompts = Prompts(PROMPTS)
    async with AsyncExitStack() as stack:
        clients = {}
        for name, told in setup["servers"].items():
            client = connect_async(
                told["url"],
                model=setup["model"],
                timeout=setup["timeout"],
                tls=Tls(*told["tls"]) if told["tls"] else None,
                headers=told["headers"],
            )
            clients[name] = await stack.enter_async_context(client)
        _tell({"ready": True})
        while True:
            job = await lines.read()
            made = _Job(clients[job["server"]], job, prompts)
            _tell({"ready": True})
            begin = (await lines.read())["begin"]
            gc.collect()
            gc.disable()
            busy, started = time.process_time(), now()
            running = asyncio.create_task(made.run(begin))
            # Nothing is told while a job runs: what can be read is the end.
            over = asyncio.create_task(lines.read())
            await asyncio.wait({running, over}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await over
            answers = await running
            # A process without a stream of its own is done at once, and was idle all the same.
            spent, took = time.process_time() - busy, max(now() - started, made.least)
            gc.enable()
            _tell({"answers": answers, "busy": spent / took})
            lines.keep(over)


class _Lines:
    """Reads standard input without stopping the loop; ends the process where it ends."""

    def __init__(self) -> None:
        self._waiting: asyncio.Task[Any] | None = None

    async def read(self) -> Any:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            return await waiting
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            os._exit(0)
        return json.loads(line)

    def keep(self, waiting: asyncio.Task[Any]) -> None:
        """Gives the next reader what is being read already."""
        self._waiting = waiting


def _tell(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def main() -> None:
    """Serves jobs until there are no more."""
    # Ctrl-C reaches the whole group; who started this process ends it by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_work())


if __name__ == "__main__":
    main()

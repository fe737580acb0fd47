"""Whether the server's memory levels out under load, and which kind of request it grows with.

    python benchmarks/memory.py --repository build/tiny-llama-int4-awq/repository
    python benchmarks/memory.py --repository DIR --kinds mixed --seconds 600 --json curve.json

Each kind of request is sent alone to a server of its own, by a fixed number of clients at a time,
and ``mixed`` is all of them, drawn with ``--seed``. What is looked at is the resident memory of
each process that is its own (``RssAnon`` of ``/proc``), without what it shares or maps from files.
``guide`` and ``new_guide`` need a repository with guided decoding; ``new_guide`` sends each guide
once, as no client should.

The table has the memory of the engine's process at the start, after each quarter of the requests
and at the end, and what the last half of them added per 1000 requests. A process that levels out
has about nothing there. A client that is slow, on a busy machine, only makes the curve longer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.serving import serving
from pipeline.triton.tensors import BLS, ENGINE
from trtllm_client import AsyncClient, Client, ClientError, add_input, new_message

WORDS = (
    *("once", "there", "was", "a", "girl", "who", "lived", "by", "the", "sea", "with", "seven"),
    *("buns", "and", "one", "green", "bell", "her", "hen", "called", "shadow", "every", "rainy"),
    *("day", "they", "went", "to", "castle", "where", "hungry", "singer", "told", "stories"),
)
GUIDE = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
)
SAMPLE_S = 2.0
LONGEST = 150

Send = Callable[[AsyncClient, random.Random], Awaitable[None]]


def text(source: random.Random, longest: int = LONGEST) -> str:
    """Words in an order that no other prompt has."""
    return " ".join(source.choices(WORDS, k=source.randint(1, longest)))


async def plain(client: AsyncClient, source: random.Random) -> None:
    """A stream of any length."""
    async with client.stream(text(source), max_tokens=source.randint(1, 200)) as stream:
        async for _ in stream:
            pass


async def whole(client: AsyncClient, source: random.Random) -> None:
    """One response, sampled."""
    await client.generate(
        text(source), max_tokens=source.randint(1, 60), top_k=40, seed=source.getrandbits(32)
    )


async def cancel(client: AsyncClient, source: random.Random) -> None:
    """A stream that is given up after a few responses."""
    left = source.randint(0, 8)
    async with client.stream(text(source), max_tokens=200) as stream:
        async for _ in stream:
            if not left:
                break
            left -= 1


async def log_probs(client: AsyncClient, source: random.Random) -> None:
    """A stream with the log probability of each token."""
    async with client.stream(
        text(source), max_tokens=source.randint(1, 100), return_log_probs=True
    ) as stream:
        async for _ in stream:
            pass


async def scored(client: AsyncClient, source: random.Random) -> None:
    """A prompt of which each token is scored."""
    ids = [source.randint(3, 900) for _ in range(source.randint(2, 300))]
    message = new_message(ENGINE, outputs=("output_ids", "sequence_length", "prompt_log_probs"))
    add_input(message, "input_ids", ids, datatype="INT32")
    add_input(message, "input_lengths", [len(ids)], datatype="INT32")
    add_input(message, "request_output_len", [1], datatype="INT32")
    add_input(message, "return_prompt_log_probs", [True], datatype="BOOL")
    # Refused where KV blocks are reused.
    with suppress(ClientError):
        await asyncio.to_thread(ask, client.url, message)


def ask(url: str, message: Any) -> None:
    """Reads every response to a message, on a connection of its own."""
    with Client(url) as client:
        for _ in client.responses(message):
            pass


async def guide(client: AsyncClient, source: random.Random) -> None:
    """A text kept to one and the same schema."""
    await client.generate(
        text(source),
        max_tokens=40,
        guided_decoding_guide_type="json_schema",
        guided_decoding_guide=GUIDE,
    )


async def new_guide(client: AsyncClient, source: random.Random) -> None:
    """A text kept to an expression that no other request has."""
    await client.generate(
        text(source),
        max_tokens=10,
        guided_decoding_guide_type="regex",
        guided_decoding_guide=f"(yes|no|{''.join(source.choices('abcdefgh', k=12))}) [a-z ]{{3,9}}",
    )


async def bad(client: AsyncClient, source: random.Random) -> None:
    """What is refused, each in its way."""
    wrong: tuple[dict[str, Any], ...] = (
        {"max_tokens": 100_000},
        {"max_tokens": 5, "temperature": -1.0},
        {"max_tokens": 5, "top_k": -3},
        {"max_tokens": 5, "presence_penalty": 1.0},
        {"max_tokens": 5, "guided_decoding_guide_type": "verse", "guided_decoding_guide": "x"},
    )
    with suppress(ClientError):
        await client.generate(text(source), **source.choice(wrong))


KINDS: dict[str, Send] = {
    kind.__name__: kind for kind in (plain, whole, cancel, log_probs, scored, guide, new_guide, bad)
}
WEIGHTS = {"plain": 6, "whole": 4, "cancel": 3, "log_probs": 2, "scored": 2, "guide": 2, "bad": 2}


def main() -> None:
    arguments = parse()
    curves = {}
    print("\n".join(head(arguments)), flush=True)
    for kind in arguments.kinds:
        curves[kind] = measure(kind, arguments)
        print(row(kind, curves[kind]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, required=True, help="one for the CPU target")
    parser.add_argument(
        "--kinds", nargs="+", choices=["mixed", *KINDS], default=["mixed"], metavar="KIND"
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="of load, for each kind")
    parser.add_argument("--clients", type=int, default=16, help="requests at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the curves there as well")
    return parser.parse_args()


def measure(kind: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Samples of one kind: seconds, requests so far, and bytes by process."""
    guided = b'guided_decoding_backend"' in (
        (arguments.repository / ENGINE / "config.pbtxt").read_bytes()
    )
    if kind.endswith("guide") and not guided:
        raise SystemExit(f"{kind}: the repository has no guided decoding")
    kinds = [kind] if kind != "mixed" else [one for one in WEIGHTS if guided or one != "guide"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        with serving(arguments.repository, log) as server:
            return asyncio.run(load(server, kinds, arguments))


async def load(
    server: Any, kinds: list[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Sends requests for a time and looks at the memory meanwhile."""
    done = itertools.count()
    requests = 0
    started = time.monotonic()
    ends = started + arguments.seconds

    async def client(number: int) -> None:
        nonlocal requests
        source = random.Random(f"{arguments.seed} {number}")
        async with AsyncClient(server.grpc_url, validate=False) as made:
            while time.monotonic() < ends:
                kind = source.choices(kinds, [WEIGHTS.get(one, 1) for one in kinds])[0]
                await KINDS[kind](made, source)
                requests = next(done) + 1

    clients = asyncio.gather(*(client(number) for number in range(arguments.clients)))
    samples = []
    try:
        while True:
            samples.append(
                {"seconds": time.monotonic() - started, "requests": requests, **memory(server)}
            )
            if clients.done():
                break
            await asyncio.wait([clients], timeout=SAMPLE_S)
    finally:
        clients.cancel()
    await clients
    return samples


def memory(server: Any) -> dict[str, int]:
    """Bytes that each process has of its own."""
    status = server.health()
    return {
        name: anonymous(pid)
        for pid, name in ((status.pid, "tritonserver"), *status.stubs.items())
        if pid is not None
    }


def anonymous(pid: int) -> int:
    """``RssAnon`` of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"process {pid} has no memory")


def head(arguments: argparse.Namespace) -> list[str]:
    """What is above the rows, as Markdown."""
    return [
        f"{arguments.clients} clients, {arguments.seconds:.0f} s each, seed {arguments.seed}; MB",
        "",
        f"| kind | requests | start | 1/4 | 1/2 | 3/4 | end | per 1000, last half | {BLS}, same |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]


def row(kind: str, samples: list[dict[str, Any]]) -> str:
    """One curve as Markdown, in MB of the engine's process."""
    total = samples[-1]["requests"]
    quarters = [at(samples, total * part / 4) for part in range(5)]
    shown = " | ".join(f"{sample[ENGINE] / 1e6:.0f}" for sample in quarters)
    half = max(1, quarters[4]["requests"] - quarters[2]["requests"])
    slopes = " | ".join(
        f"{(quarters[4][name] - quarters[2][name]) / 1e3 / half:+.2f}" for name in (ENGINE, BLS)
    )
    return f"| {kind} | {total} | {shown} | {slopes} |"


def at(samples: list[dict[str, Any]], requests: float) -> dict[str, Any]:
    """The first sample with so many requests."""
    found: Iterator[dict[str, Any]] = (
        sample for sample in samples if sample["requests"] >= requests
    )
    return next(found)


if __name__ == "__main__":
    main()

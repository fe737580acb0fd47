"""What the OpenAI gateway costs: the same tokens through it and from a bare gRPC client.

    python benchmarks/gateway.py --repository build/tiny-llama-int4-awq/repository
    python benchmarks/gateway.py --repository DIR --streams 32 --rounds 9 --json result.json

One run on one machine, both ways in turns and again in every round, every other round backwards:

- ``grpc``: ``trtllm_client.AsyncClient`` on ``tensorrt_llm``, token ids in and out. It has no text
  to make and nothing between it and the server.
- ``gateway``: text in and server-sent events out of ``/v1/completions``, read by a client that does
  as little as it can. The gateway is a process of its own in front of the same server.

The clients are one more process on the same processor. Every request is generated to its full
length, greedily. What decides is the ratio, paired by round: a machine that is busy elsewhere slows
both down alike. ``cpu`` is the same ratio of processor time per token, of all processes together,
which a busy machine changes less; ``cpu ms/token`` says whose it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import takewhile
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any
from urllib.parse import urlsplit

from serving import (
    Arrivals,
    Clients,
    Sample,
    answer_all,
    ask,
    child,
    cpu_seconds,
    gather,
    process_seconds,
    span,
    text_of,
)

from pipeline.bench.prompts import Prompts
from pipeline.serving import serving
from pipeline.triton.parameters import TOKENIZER_DIR
from pipeline.triton.tensors import ENGINE

BARE, GATEWAY = "grpc", "gateway"
HEADINGS = (
    *("streams", "way", "tokens/s", "of grpc's", "cpu", "first token ms", "itl ms"),
    *("cpu ms/token of server, gateway, client", "tokens/message", "errors"),
)
PATIENCE_S = 60

Way = Callable[[Sequence[str], int], Sample]


def main() -> None:
    arguments = parse()
    with ExitStack() as stack:
        ways = open_ways(arguments.repository, stack)
        rows = measure(ways, arguments)
    print(table(rows, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, required=True, help="of the CPU target")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input", type=int, default=128, help="tokens of a prompt, about")
    parser.add_argument("--tokens", type=int, default=128, help="generated per request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return parser.parse_args()


def open_ways(repository: Path, stack: ExitStack) -> dict[str, Way]:
    """Starts everything that is measured, by its name in the table."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = stack.enter_context(serving(repository, folder / "triton.log"))
    gateway, port = stack.enter_context(started_gateway(repository, server.grpc_url))
    clients = stack.enter_context(child(serve_clients, repository, server.grpc_url, port))

    def way(name: str) -> Way:
        def run(prompts: Sequence[str], tokens: int) -> Sample:
            pid = server.health().pid
            assert pid is not None, "the server is down"
            before, started = cpu_seconds(pid), process_seconds(gateway)
            sample: Sample = ask(clients, (name, prompts, tokens))
            cpu = {part: spent - before[part] for part, spent in cpu_seconds(pid).items()}
            cpu |= {GATEWAY: process_seconds(gateway) - started}
            return replace(sample, cpu=sum(cpu.values()), cpu_of=cpu)

        return run

    return {name: way(name) for name in (BARE, GATEWAY)}


@contextmanager
def started_gateway(repository: Path, grpc_url: str) -> Iterator[tuple[int, int]]:
    """A gateway in a process of its own: its pid and its port."""
    command = [sys.executable, "-m", "pipeline", "gateway", "--url", grpc_url, "--port", "0"]
    command += ["--tokenizer", str(repository), "--json", "--quiet"]
    # The kernel shares the processors out among sessions; the server has one of its own.
    with Popen(command, stdout=PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            said = "".join(takewhile(lambda line: line != "}\n", process.stdout))
            if not said:
                raise SystemExit("the gateway did not start")
            yield process.pid, urlsplit(json.loads(said + "}")["openai"]).port or 0
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def measure(ways: Mapping[str, Way], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per way and number of streams."""
    texts = Prompts([text_of(arguments.repository, arguments.input - 4)])
    levels = sorted(set(arguments.streams))
    samples: dict[tuple[int, str], list[Sample]] = {
        (streams, name): [] for streams in levels for name in ways
    }
    for ask_first in ways.values():
        # Pays for what is set up once.
        ask_first([texts.short() for _ in range(max(levels))], 8)
    for number in range(arguments.rounds):
        for streams in levels:
            for name in ways if number % 2 else reversed(ways):
                sample = ways[name]([texts.short() for _ in range(streams)], arguments.tokens)
                if not sample.errors and sample.tokens != streams * arguments.tokens:
                    raise SystemExit(
                        f"{name} gave {sample.tokens} tokens, not {streams}x{arguments.tokens}"
                    )
                samples[streams, name].append(sample)
    return [
        row(streams, name, found, samples[streams, BARE])
        for (streams, name), found in samples.items()
    ]


def row(streams: int, name: str, found: Sequence[Sample], bare: Sequence[Sample]) -> dict[str, Any]:
    """The medians of a way over the rounds, and its ratios to the bare client by round."""

    def middle(value: Callable[[Sample], float]) -> float:
        return statistics.median(map(value, found))

    return {
        "way": name,
        "streams": streams,
        "tokens_per_second": middle(lambda s: s.tokens / s.seconds),
        "speed_ratios": [
            (one.tokens / one.seconds) / (base.tokens / base.seconds)
            for one, base in zip(found, bare, strict=True)
        ],
        "cpu_ratios": [
            ((base.cpu + base.client_cpu) / base.tokens) / ((one.cpu + one.client_cpu) / one.tokens)
            for one, base in zip(found, bare, strict=True)
        ],
        "first_token_ms": middle(lambda s: 1e3 * statistics.median(s.first)),
        "per_token_ms": middle(lambda s: 1e3 * statistics.median(s.per_token)),
        "server_cpu_ms_per_token": middle(lambda s: 1e3 * (s.cpu - s.cpu_of[GATEWAY]) / s.tokens),
        "gateway_cpu_ms_per_token": middle(lambda s: 1e3 * s.cpu_of[GATEWAY] / s.tokens),
        "client_cpu_ms_per_token": middle(lambda s: 1e3 * s.client_cpu / s.tokens),
        "tokens_per_message": middle(lambda s: s.tokens / s.responses),
        "errors": [error for s in found for error in s.errors],
    }


def table(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> str:
    """The rows as Markdown."""
    lines = [
        f"{arguments.input} tokens in (about), {arguments.tokens} out, {arguments.rounds} rounds",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---:|---|" + "---:|" * (len(HEADINGS) - 2),
    ]
    for one in rows:
        cpu = [one[f"{part}_cpu_ms_per_token"] for part in ("server", GATEWAY, "client")]
        cells = [
            one["streams"],
            one["way"],
            f"{one['tokens_per_second']:.0f}",
            *(
                span(one[ratio], ".3f") if one["way"] == GATEWAY else "-"
                for ratio in ("speed_ratios", "cpu_ratios")
            ),
            f"{one['first_token_ms']:.0f}",
            f"{one['per_token_ms']:.2f}",
            " ".join(f"{value:.3f}" for value in cpu),
            f"{one['tokens_per_message']:.2f}",
            len(one["errors"]),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    errors = sorted({error for one in rows for error in one["errors"]})
    return "\n".join([*lines, *(f"\n{error}" for error in errors[:3])])


def serve_clients(connection: Connection, repository: Path, url: str, port: int) -> None:
    """The process of the clients: (way, prompts, tokens) in, a :class:`Sample` out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))
    bare, streamed = Clients(url, tokenizer), EventClients(port)

    def answer(way: str, prompts: Sequence[str], tokens: int) -> Sample:
        if way == BARE:
            return asyncio.run(bare.load(ENGINE, prompts, tokens))
        return asyncio.run(streamed.load(prompts, tokens))

    answer_all(connection, answer)


class EventClients:
    """Streams of server-sent events that are asked for together.

    Args:
        port: Of the gateway, on this machine.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    async def load(self, prompts: Sequence[str], tokens: int) -> Sample:
        """Asks for so many tokens behind each prompt."""
        return await gather(self._one, prompts, tokens)

    async def _one(self, prompt: str, tokens: int, stream: Arrivals) -> None:
        body = json.dumps(
            {
                "prompt": prompt,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(head.encode() + body)
            last = b""
            status = await reader.readline()
            if b" 200 " not in status:
                stream.error = f"{status!r}: {(await reader.read())[-400:]!r}"
                return
            while line := await reader.readline():
                if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
                    continue
                last = line
                stream.add(1)  # how many tokens an event has is not said
            counted = json.loads(last.removeprefix(b"data: ")).get("usage") or {}
            stream.tokens = int(counted.get("completion_tokens", 0))
        except (OSError, ValueError) as error:
            stream.error = repr(error)
        finally:
            writer.close()


if __name__ == "__main__":
    main()

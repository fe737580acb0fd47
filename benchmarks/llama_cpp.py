"""The served repository against a llama.cpp server with the same weights, on the same processor.

    python benchmarks/llama_cpp.py                                # builds all it needs, in build/
    python benchmarks/llama_cpp.py --formats int8_sq --streams 1 32 --rounds 5 --json result.json

The model is the Llama of random weights that ``random_llama.py`` makes. Ours serves it as int4_awq
and int8_sq; llama.cpp, built here for this processor (``llama_server.py``), as Q4_0 and Q8_0 of the
same source. Text goes in and comes out as it is made, over HTTP from both (``generate_stream`` of
``tensorrt_llm_bls``, ``/completion``), read by the same code in one more process; over gRPC from
ours too. Every request is generated to its full length, greedily, and no prompt is like another.

All ways take turns in every round, every other round backwards. What decides is the ratio to
llama.cpp, paired by round, here with its lowest and highest: a machine that is busy elsewhere slows
both down alike. ``cpu`` is the processor time of the server for each token.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_server
import random_llama

from pipeline.bench import PROMPTS
from pipeline.bench.prompts import Prompts
from pipeline.serving import serving
from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR
from pipeline.triton.stubs import live_stubs
from pipeline.triton.tensors import BLS
from trtllm_client import AsyncClient

OURS, OURS_GRPC, THEIRS = f"{BLS}, HTTP", f"{BLS}, gRPC", "llama.cpp"
SAME_WEIGHTS = {"int4_awq": "Q4_0", "int8_sq": "Q8_0"}
HEADINGS = ("streams", "way", "tokens/s", "of llama.cpp's", "first token ms", "itl ms", "cpu ms")
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Stream:
    """What came of one request: tokens in all, and seconds until the first and last response."""

    tokens: int = 0
    first: float = 0.0
    last: float = 0.0


@dataclass(frozen=True)
class Load:
    """Requests that are sent together.

    Attributes:
        way: One of the ways.
        address: HOST:PORT.
        prompts: One for each request.
        tokens: Generated for each.
    """

    way: str
    address: str
    prompts: Sequence[str]
    tokens: int


@dataclass(frozen=True)
class Way:
    """A server.

    Attributes:
        address: HOST:PORT.
        processes: Lists the ids of what serves.
    """

    address: str
    processes: Callable[[], list[int]] = field(repr=False)

    def cpu(self) -> float:
        """Seconds of processor of everything that serves, until now."""
        spent = 0
        for pid in self.processes():
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            spent += int(stat[11]) + int(stat[12])
        return spent / TICK


def main() -> None:
    arguments = parse()
    build = arguments.build.resolve()
    tools = (arguments.llama_cpp or build / "llama-cpp").resolve()
    rows = []
    for form in arguments.formats:
        repository = random_llama.build(build, form)
        weights = llama_server.quantized(tools, build / random_llama.NAME, SAME_WEIGHTS[form])
        with ExitStack() as stack:
            ways = open_ways(repository, tools, weights, stack)
            # Four tokens go to the word that each prompt begins with.
            text = text_of(repository, arguments.input - 4)
            rows += compare(form, ways, text, arguments)
            print(table(form, [row for row in rows if row["format"] == form], arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    formats = tuple(SAME_WEIGHTS)
    parser.add_argument("--formats", nargs="+", default=formats, choices=formats)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input", type=int, default=128, help="tokens of a prompt, about")
    parser.add_argument("--tokens", type=int, default=128, help="generated per request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--build", type=Path, default=random_llama.PROJECT / "build", help="the build folder"
    )
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="DIR", help="llama.cpp; built in llama-cpp of it if not"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return parser.parse_args()


def open_ways(repository: Path, tools: Path, weights: Path, stack: ExitStack) -> dict[str, Way]:
    """Starts both servers, with room for as many requests and tokens."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = stack.enter_context(serving(repository, folder / "triton.log"))
    sizes = json.loads((repository / ENGINE_DIR / "config.json").read_text(encoding="utf-8"))
    theirs, pid = stack.enter_context(
        llama_server.running(
            tools,
            weights,
            slots=sizes["build_config"]["max_batch_size"],
            context=sizes["build_config"]["max_seq_len"],
            log=folder / "llama.log",
        )
    )

    def ours() -> list[int]:
        main_process = server.health().pid
        if main_process is None:
            raise SystemExit("tritonserver is down")
        return [main_process, *live_stubs(main_process)]

    check_prompts(repository, theirs)
    return {
        THEIRS: Way(theirs, lambda: [pid]),
        OURS: Way(server.http_url.removeprefix("http://"), ours),
        OURS_GRPC: Way(server.grpc_url, ours),
    }


def check_prompts(repository: Path, address: str) -> None:
    """Makes sure that both read a text as the same tokens."""

    async def read() -> list[int]:
        events = posted(address, "/tokenize", {"content": " ".join(PROMPTS)}, whole=True)
        async with aclosing(events):
            return [token async for event in events for token in event["tokens"]]

    if asyncio.run(read()) != tokenizer_of(repository).encode(" ".join(PROMPTS)).ids:
        raise SystemExit("llama.cpp reads a prompt as other tokens; is the GGUF of this model?")


def compare(
    form: str, ways: Mapping[str, Way], text: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per way and number of streams, from prompts that go on with a text."""
    texts = Prompts([text])
    found: dict[tuple[int, str], list[dict[str, float]]] = {
        (streams, name): [] for streams in arguments.streams for name in ways
    }
    context = multiprocessing.get_context("spawn")
    # The kernel shares the processors out among sessions; each server has one of its own.
    with ProcessPoolExecutor(1, context, initializer=os.setsid) as clients:

        def visit(name: str, streams: int, tokens: int) -> dict[str, float]:
            way, prompts = ways[name], [texts.short() for _ in range(streams)]
            before = way.cpu()
            load = Load(name, way.address, prompts, tokens)
            seconds, streamed = clients.submit(run_load, load).result()
            return numbers(seconds, streamed, way.cpu() - before, load)

        for name in ways:
            visit(name, max(arguments.streams), 8)  # pays for what is set up once
        for number in range(arguments.rounds):
            for streams in arguments.streams:
                for name in ways if number % 2 else reversed(list(ways)):
                    found[streams, name].append(visit(name, streams, arguments.tokens))
    return [
        {
            "format": form,
            "streams": streams,
            "way": name,
            "ratios": [
                one["tokens_per_second"] / other["tokens_per_second"]
                for one, other in zip(samples, found[streams, THEIRS], strict=True)
            ],
            "samples": samples,
        }
        for (streams, name), samples in found.items()
    ]


def text_of(repository: Path, tokens: int) -> str:
    """A text of so many tokens."""
    tokenizer = tokenizer_of(repository)
    ids = tokenizer.encode(" ".join(PROMPTS) * 8, add_special_tokens=False).ids[:tokens]
    return str(tokenizer.decode(ids))


def tokenizer_of(repository: Path) -> Any:
    """What the repository reads texts with."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))


def numbers(seconds: float, streams: Sequence[Stream], cpu: float, load: Load) -> dict[str, float]:
    """What a load took, of a server that gave all that was asked."""
    tokens = sum(stream.tokens for stream in streams)
    if tokens != load.tokens * len(streams):
        raise SystemExit(f"{load.way} gave {tokens} tokens, not {len(streams)}x{load.tokens}")
    return {
        "tokens_per_second": tokens / seconds,
        "first_token_ms": 1e3 * statistics.median(stream.first for stream in streams),
        "per_token_ms": 1e3
        * statistics.median((s.last - s.first) / max(s.tokens - 1, 1) for s in streams),
        "cpu_ms_per_token": 1e3 * cpu / tokens,
    }


def table(form: str, rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> str:
    """The rows as Markdown."""
    sizes = f"{arguments.input} tokens in (about), {arguments.tokens} out"
    lines = [
        f"{form} against {SAME_WEIGHTS[form]}: {sizes}, {arguments.rounds} rounds",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---:|---|" + "---:|" * (len(HEADINGS) - 2),
    ]
    for row in rows:

        def middle(name: str, row: Mapping[str, Any] = row) -> float:
            return float(statistics.median(sample[name] for sample in row["samples"]))

        ratios = row["ratios"]
        cells = (
            *(row["streams"], row["way"], f"{middle('tokens_per_second'):.0f}"),
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            if row["way"] != THEIRS
            else "-",
            *(f"{middle('first_token_ms'):.0f}", f"{middle('per_token_ms'):.2f}"),
            f"{middle('cpu_ms_per_token'):.2f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def run_load(load: Load) -> tuple[float, list[Stream]]:
    """Sends a load, in the process of the clients; returns its seconds and streams."""
    return asyncio.run(sent(load))


async def sent(load: Load) -> tuple[float, list[Stream]]:
    """Sends all requests together and reads them to their ends."""
    started = time.perf_counter()
    async with AsyncExitStack() as stack:
        if load.way == OURS_GRPC:
            client = await stack.enter_async_context(AsyncClient(load.address, model=BLS))
            read = functools.partial(over_grpc, client)
        else:
            over_http = from_llama_cpp if load.way == THEIRS else from_triton
            read = functools.partial(over_http, load.address)

        async def one(prompt: str) -> Stream:
            stream = Stream()
            async with aclosing(read(prompt, load.tokens)) as pieces:
                async for tokens in pieces:
                    if not tokens:
                        continue
                    stream.last = time.perf_counter() - started
                    stream.first = stream.first or stream.last
                    stream.tokens += tokens
            return stream

        streams = await asyncio.gather(*map(one, load.prompts))
        return time.perf_counter() - started, list(streams)


async def from_llama_cpp(address: str, prompt: str, tokens: int) -> AsyncGenerator[int]:
    """Yields the tokens of each response of llama.cpp's server."""
    body = {
        "prompt": prompt,
        "n_predict": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    counted = 0
    async for event in posted(address, "/completion", body):
        # Bytes that are no letter yet are held back with their tokens; the last event counts all.
        new = event["tokens_predicted"] - counted if event["stop"] else len(event["tokens"])
        counted += new
        yield new


async def from_triton(address: str, prompt: str, tokens: int) -> AsyncGenerator[int]:
    """Yields the tokens of each response of Triton's ``generate_stream``."""
    body = {
        "text_input": prompt,
        "max_tokens": tokens,
        "end_id": -1,
        "stream": True,
        "return_num_output_tokens": True,
    }
    async for event in posted(address, f"/v2/models/{BLS}/generate_stream", body):
        yield int(event["num_output_tokens"])


async def over_grpc(client: AsyncClient, prompt: str, tokens: int) -> AsyncGenerator[int]:
    """Yields the tokens of each response of a gRPC stream."""
    async for chunk in client.stream(prompt, max_tokens=tokens, end_id=-1):
        yield chunk.num_output_tokens or 0


async def posted(
    address: str, path: str, body: Mapping[str, Any], *, whole: bool = False
) -> AsyncGenerator[Any]:
    """Yields the JSON of each server-sent event of an answer.

    Args:
        address: HOST:PORT.
        path: Where to.
        body: What is sent, as JSON.
        whole: Whether the answer is one JSON without events.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{address}{path}: {status.decode().strip()}")
        mark = b"{" if whole else b"data: {"
        while line := await reader.readline():
            if line.startswith(mark):
                yield json.loads(line[line.index(b"{") :])
            if line.rstrip() == b"0" or (whole and line.startswith(mark)):
                return
    finally:
        writer.close()


if __name__ == "__main__":
    main()

"""The served repository against a llama.cpp server with the same weights, on the same processor.

    python benchmarks/llama_cpp.py                                # builds all it needs, in build/
    python benchmarks/llama_cpp.py --formats int8_sq --streams 1 32 --rounds 5 --json result.json

The model is the Llama of random weights that ``random_llama.py`` makes. Ours serves it as int4_awq
and int8_sq, by ``tensorrt_llm_bls`` over gRPC; llama.cpp, built here for this processor
(``llama_server.py``), as Q4_0 and Q8_0 of the same source, by ``/completion`` over HTTP. Text goes
in and comes out as it is made, read by one more process. Every request is generated to its full
length, greedily, and no prompt is like another.

Both take turns in every round, every other round the other way about. What decides is the ratio,
paired by round, here with its lowest and highest: a machine that is busy elsewhere slows both down
alike. ``cpu`` is the processor time of the server for each token; the rest is as in
``serving.py``. With ``--gateway`` a third way is the OpenAI gateway, HTTP against HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_server
import random_llama
from gateway import GATEWAY, EventClients, started_gateway
from serving import (
    Arrivals,
    Sample,
    Way,
    answer_all,
    ask,
    ask_served,
    child,
    cpu_seconds,
    gather,
    process_seconds,
    serve_clients,
    span,
    text_of,
)

from pipeline.bench import PROMPTS
from pipeline.bench.prompts import Prompts
from pipeline.serving import serving
from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR
from pipeline.triton.tensors import BLS

THEIRS = "llama.cpp"
SAME_WEIGHTS = {"int4_awq": "Q4_0", "int8_sq": "Q8_0"}
HEADINGS = (
    *("streams", "way", "tokens/s", "of llama.cpp's"),
    *("first token ms", "itl ms", "itl/llama.cpp's", "cpu ms/token", "errors"),
)


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with it
    build = arguments.build.resolve()
    tools = (arguments.llama_cpp or build / "llama-cpp").resolve()
    rows = []
    for form in arguments.formats:
        repository = random_llama.build(build, form, arguments.dynamic_quantization)
        weights = llama_server.quantized(tools, build / random_llama.NAME, SAME_WEIGHTS[form])
        with ExitStack() as stack:
            ways = open_ways(repository, tools, weights, stack, with_gateway=arguments.gateway)
            found = compare(form, ways, text_of(repository, arguments.input - 4), arguments)
        print(table(form, found, arguments), flush=True)
        rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    formats = tuple(SAME_WEIGHTS)
    parser.add_argument("--formats", nargs="+", default=formats, choices=formats)
    parser.add_argument(
        "--dynamic-quantization",
        type=int,
        default=0,
        metavar="GROUP",
        help="our activations in INT8 too, so many input features to a scale, as llama.cpp has them"
        " by 32 (compile.dynamic_quantization_group_size)",
    )
    parser.add_argument(
        "--gateway",
        action="store_true",
        help="also by the OpenAI gateway, over HTTP as llama.cpp",
    )
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


def open_ways(
    repository: Path, tools: Path, weights: Path, stack: ExitStack, *, with_gateway: bool
) -> dict[str, Way]:
    """Starts both servers, with room for as many requests and tokens, and their clients."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = stack.enter_context(serving(repository, folder / "triton.log"))
    ours = stack.enter_context(child(serve_clients, repository, server.grpc_url))
    sizes = json.loads((repository / ENGINE_DIR / "config.json").read_text(encoding="utf-8"))
    address, pid = stack.enter_context(
        llama_server.running(
            tools,
            weights,
            slots=sizes["build_config"]["max_batch_size"],
            context=sizes["build_config"]["max_seq_len"],
            log=folder / "llama.log",
        )
    )
    check_prompts(repository, address)
    theirs = stack.enter_context(child(serve_readers, address))

    def llama_cpp(prompts: Sequence[str], tokens: int) -> Sample:
        before = process_seconds(pid)
        sample: Sample = ask(theirs, (prompts, tokens))
        return replace(sample, cpu=process_seconds(pid) - before)

    ways = {THEIRS: llama_cpp, BLS: ask_served(server, ours, BLS)}
    if not with_gateway:
        return ways
    gateway, port = stack.enter_context(started_gateway(repository, server.grpc_url))
    clients = stack.enter_context(child(serve_event_clients, port))

    def through_gateway(prompts: Sequence[str], tokens: int) -> Sample:
        main_process = server.health().pid
        assert main_process is not None, "the server is down"

        def spent() -> float:
            return sum(cpu_seconds(main_process).values()) + process_seconds(gateway)

        before = spent()
        sample: Sample = ask(clients, (prompts, tokens))
        return replace(sample, cpu=spent() - before)

    return {**ways, GATEWAY: through_gateway}


def check_prompts(repository: Path, address: str) -> None:
    """Makes sure that both read a text as the same tokens."""
    from tokenizers import Tokenizer

    text = " ".join(PROMPTS)
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(
        "POST", "/tokenize", json.dumps({"content": text}), {"Content-Type": "application/json"}
    )
    tokens = json.load(connection.getresponse())["tokens"]
    connection.close()
    tokenizer = Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))
    if tokens != tokenizer.encode(text).ids:
        raise SystemExit("llama.cpp reads a prompt as other tokens; is the GGUF of this model?")


def compare(
    form: str, ways: Mapping[str, Way], text: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per way and number of streams, from prompts that go on with a text."""
    texts = Prompts([text])
    found: dict[tuple[int, str], list[Sample]] = {
        (streams, name): [] for streams in arguments.streams for name in ways
    }
    for way in ways.values():
        # Pays for what is set up once.
        way([texts.short() for _ in range(max(arguments.streams))], 8)
    for number in range(arguments.rounds):
        for streams in arguments.streams:
            for name in ways if number % 2 else reversed(list(ways)):
                sample = ways[name]([texts.short() for _ in range(streams)], arguments.tokens)
                if not sample.errors and sample.tokens != streams * arguments.tokens:
                    raise SystemExit(
                        f"{name} gave {sample.tokens} tokens, not {streams}x{arguments.tokens}"
                    )
                found[streams, name].append(sample)
    return [
        row(form, streams, name, samples, found[streams, THEIRS])
        for (streams, name), samples in found.items()
    ]


def row(
    form: str, streams: int, name: str, samples: Sequence[Sample], theirs: Sequence[Sample]
) -> dict[str, Any]:
    """The medians of a way over the rounds, and its ratios to llama.cpp by round."""

    def per_token(sample: Sample) -> float:
        return statistics.median(sample.per_token)

    pairs = list(zip(samples, theirs, strict=True))
    return {
        "format": form,
        "streams": streams,
        "way": name,
        "tokens_per_second": statistics.median(s.tokens / s.seconds for s in samples),
        "speed_ratios": [a.tokens / a.seconds / (b.tokens / b.seconds) for a, b in pairs],
        "first_token_ms": statistics.median(1e3 * statistics.median(s.first) for s in samples),
        "per_token_ms": statistics.median(1e3 * per_token(s) for s in samples),
        "per_token_ratios": [per_token(a) / per_token(b) for a, b in pairs],
        "cpu_ms_per_token": statistics.median(1e3 * s.cpu / s.tokens for s in samples),
        "errors": [error for s in samples for error in s.errors],
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
    for one in rows:
        ours = one["way"] != THEIRS
        cells = (
            *(one["streams"], one["way"], f"{one['tokens_per_second']:.0f}"),
            span(one["speed_ratios"]) if ours else "-",
            *(f"{one['first_token_ms']:.0f}", f"{one['per_token_ms']:.2f}"),
            span(one["per_token_ratios"]) if ours else "-",
            *(f"{one['cpu_ms_per_token']:.2f}", len(one["errors"])),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def serve_readers(connection: Any, address: str) -> None:
    """The process of llama.cpp's clients: (prompts, tokens) in, a :class:`Sample` out."""

    async def one(prompt: str, tokens: int, stream: Arrivals) -> None:
        async for new in completion(address, prompt, tokens):
            stream.add(new)

    answer_all(connection, lambda prompts, tokens: asyncio.run(gather(one, prompts, tokens)))


def serve_event_clients(connection: Any, port: int) -> None:
    """The process of the gateway's clients: (prompts, tokens) in, a :class:`Sample` out."""
    clients = EventClients(port)
    answer_all(connection, lambda *question: asyncio.run(clients.load(*question)))


async def completion(address: str, prompt: str, tokens: int) -> AsyncGenerator[int]:
    """Yields the tokens of each response of llama.cpp's server.

    Raises:
        RuntimeError: It refused the request.
    """
    body = {
        "prompt": prompt,
        "n_predict": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    host, _, port = address.rpartition(":")
    content = json.dumps(body).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        if b" 200 " not in (status := await reader.readline()):
            raise RuntimeError(f"llama.cpp answered {status.decode().strip()}")
        counted = 0
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            # Bytes that are no letter yet are held back with their tokens; the last one counts all.
            new = event["tokens_predicted"] - counted if event["stop"] else len(event["tokens"])
            counted += new
            yield new
            if event["stop"]:
                return
    finally:
        writer.close()


if __name__ == "__main__":
    main()

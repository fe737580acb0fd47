"""What serving costs: text in and text out over gRPC, against the bare engine.

    python benchmarks/serving.py --repository build/tiny-llama-int4-awq/repository
    python benchmarks/serving.py --random-llama int4_awq int8_sq     # built first (random_llama.py)
    python benchmarks/serving.py --repository DIR --ways tensorrt_llm ensemble --json result.json

One run on one machine, everything in turns and again in every round, every other round backwards:

- ``engine``: openvino_genai's continuous batching in a process of its own, called in a plain loop
  with the settings that the served model gives it. It sets the pace that nothing above it can beat.
- ``tensorrt_llm_bls`` and ``ensemble``: text in and text out, streamed over gRPC from a real
  tritonserver; ``tensorrt_llm``: token ids in and out.

The clients are one more process on the same processor. Every request is generated to its full
length, greedily. What decides is the ratio to ``engine``, paired by round: a machine that is busy
elsewhere slows both down alike. ``cpu`` is the same ratio of processor time per token, which a busy
machine hardly changes: the engine's over the server's, the clients' left out.

``gap`` is the longest wait between two responses of one stream; ``itl`` the mean time per token of
a stream after its first; ``spread`` the slowest request's time over the median one's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench import PROMPTS
from pipeline.bench.prompts import Prompts
from pipeline.serving import serving
from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR
from pipeline.triton.server import TritonServer
from pipeline.triton.stubs import live_stubs
from pipeline.triton.tensors import BLS, ENGINE, ENSEMBLE
from trtllm_client import AsyncClient, add_input, new_message

BARE = "engine"
BURSTS = (128, 256)
HEADINGS = (
    *("repository", "streams", "way", "tokens/s", "of the engine's"),
    *("cpu ms/token (clients)", "cpu", "itl ms", "itl/engine's", "first token ms"),
    *("tokens/response", "gap ms", "spread", "errors"),
)
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """What one way took for one set of requests.

    Attributes:
        tokens: Generated, all requests together.
        seconds: From the first request to the last token.
        cpu: Seconds of processor of everything but the clients.
        client_cpu: Those of the clients.
        first: Seconds until the first token, by request.
        per_token: Seconds per token after the first, by request.
        gaps: The longest wait between two responses, by request.
        whole: Seconds, by request.
        responses: How many there were.
        errors: Texts of the requests that failed.
        cpu_of: What ``cpu`` is made of, by process.
    """

    tokens: int
    seconds: float
    cpu: float
    client_cpu: float
    first: Sequence[float]
    per_token: Sequence[float]
    gaps: Sequence[float]
    whole: Sequence[float]
    responses: int
    errors: Sequence[str] = ()
    cpu_of: Mapping[str, float] = field(default_factory=dict)


Way = Callable[[Sequence[str], int], Sample]


def main() -> None:
    arguments = parse()
    results = []
    for repository in repositories(arguments):
        with ExitStack() as stack:
            found = measure(repository, open_ways(repository, arguments, stack), arguments)
        print(table(found, arguments), flush=True)
        results += found
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, nargs="+", default=[], help="of the CPU target")
    parser.add_argument(
        "--random-llama",
        nargs="+",
        default=[],
        choices=("int4_awq", "int8_sq"),
        metavar="FORMAT",
        help="measure a Llama of 124.7 million random weights, built first where it is not there",
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--bursts",
        type=int,
        nargs="*",
        default=[],
        help=f"numbers of streams for gaps and spread alone, such as {BURSTS[0]} {BURSTS[1]}",
    )
    parser.add_argument("--ways", nargs="+", default=[BLS], choices=(BLS, ENSEMBLE, ENGINE))
    parser.add_argument("--input", type=int, default=128, help="tokens of a prompt, about")
    parser.add_argument("--tokens", type=int, default=128, help="generated per request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    arguments = parser.parse_args()
    if not (arguments.repository or arguments.random_llama):
        parser.error("give --repository or --random-llama")
    return arguments


def repositories(arguments: argparse.Namespace) -> Iterator[Path]:
    """What is measured, one after the other."""
    yield from arguments.repository
    if arguments.random_llama:
        from random_llama import PROJECT, build

        for form in arguments.random_llama:
            yield build(PROJECT / "build", form)


def open_ways(repository: Path, arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Way]:
    """Starts everything that is measured, by its name in the table."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    bare = stack.enter_context(child(serve_engine, repository))
    server = stack.enter_context(serving(repository, folder / "triton.log"))
    clients = stack.enter_context(child(serve_clients, repository, server.grpc_url))
    return {
        BARE: lambda prompts, tokens: ask(bare, (prompts, tokens)),
        **{model: ask_served(server, clients, model) for model in arguments.ways},
    }


def ask_served(server: TritonServer, clients: Connection, model: str) -> Way:
    """A way through a model of a running server.

    Args:
        server: It.
        clients: The process that runs :func:`serve_clients` for it.
        model: Which of its models is asked.
    """

    def run(prompts: Sequence[str], tokens: int) -> Sample:
        pid = server.health().pid
        assert pid is not None, "the server is down"
        before = cpu_seconds(pid)
        sample: Sample = ask(clients, (model, prompts, tokens))
        cpu = {name: spent - before[name] for name, spent in cpu_seconds(pid).items()}
        return replace(sample, cpu=sum(cpu.values()), cpu_of=cpu)

    return run


@contextmanager
def child(target: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """A process that answers what it is asked, and ends with the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *args), daemon=True)
    process.start()
    there.close()
    try:
        here.recv()  # it is ready
        yield here
    finally:
        here.close()
        process.join(10)
        process.terminate()


def ask(connection: Connection, question: Any) -> Any:
    """Asks a process and waits for its answer."""
    connection.send(question)
    answer = connection.recv()
    if isinstance(answer, str):
        raise SystemExit(answer)
    return answer


def cpu_seconds(server: int) -> dict[str, float]:
    """Seconds of processor of tritonserver and of the process of each model in Python."""
    processes = {server: "tritonserver", **live_stubs(server)}
    return {name: process_seconds(pid) for pid, name in processes.items()}


def process_seconds(pid: int) -> float:
    """Seconds of processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def measure(
    repository: Path, ways: Mapping[str, Way], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per way and number of streams."""
    texts = Prompts([text_of(repository, arguments.input - 4)])
    levels = sorted({*arguments.streams, *arguments.bursts})
    samples: dict[tuple[int, str], list[Sample]] = {
        (streams, name): [] for streams in levels for name in ways
    }
    for ask_first in ways.values():
        # Pays for what is set up once.
        ask_first([texts.short() for _ in range(max(arguments.streams))], 8)
    for number in range(arguments.rounds):
        for streams in levels:
            names = [n for n in ways if n != BARE or streams in arguments.streams]
            for name in names if number % 2 else reversed(names):
                asked = [texts.short() for _ in range(streams)]
                sample = ways[name](asked, arguments.tokens)
                if not sample.errors and sample.tokens != streams * arguments.tokens:
                    raise SystemExit(
                        f"{name} gave {sample.tokens} tokens, not {streams}x{arguments.tokens}"
                    )
                samples[streams, name].append(sample)
    return [
        row(repository, streams, name, found, samples[streams, BARE])
        for (streams, name), found in samples.items()
        if found
    ]


def text_of(repository: Path, tokens: int) -> str:
    """A text of so many tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))
    ids = tokenizer.encode(" ".join(PROMPTS) * 8, add_special_tokens=False).ids[:tokens]
    return str(tokenizer.decode(ids))


def row(
    repository: Path, streams: int, name: str, found: Sequence[Sample], bare: Sequence[Sample]
) -> dict[str, Any]:
    """The medians of a way over the rounds, and of its ratios to the bare engine by round."""

    def middle(value: Callable[[Sample], float]) -> float:
        return statistics.median(map(value, found))

    def ratio(value: Callable[[Sample], float]) -> list[float] | None:
        if not bare:
            return None
        return [value(one) / value(base) for one, base in zip(found, bare, strict=True)]

    return {
        "repository": repository.parent.name,
        "way": name,
        "streams": streams,
        "tokens_per_second": middle(lambda s: s.tokens / s.seconds),
        "cpu_ms_per_token": middle(lambda s: 1e3 * s.cpu / s.tokens),
        "cpu_ms_per_token_of": {
            process: middle(lambda s, process=process: 1e3 * s.cpu_of[process] / s.tokens)
            for process in found[0].cpu_of
        },
        "client_cpu_ms_per_token": middle(lambda s: 1e3 * s.client_cpu / s.tokens),
        "speed_ratios": ratio(lambda s: s.tokens / s.seconds),
        "cpu_ratios": ratio(lambda s: s.tokens / s.cpu),
        "per_token_ratios": ratio(lambda s: statistics.median(s.per_token)),
        "per_token_ms": middle(lambda s: 1e3 * statistics.median(s.per_token)),
        "first_token_ms": middle(lambda s: 1e3 * statistics.median(s.first)),
        "longest_gap_ms": [1e3 * max(s.gaps) for s in found],
        "median_gap_ms": middle(lambda s: 1e3 * statistics.median(s.gaps)),
        "tokens_per_response": middle(lambda s: s.tokens / s.responses),
        "spread": [max(s.whole) / statistics.median(s.whole) for s in found],
        "errors": [error for s in found for error in s.errors],
    }


def table(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> str:
    """The rows as Markdown."""
    lines = [
        f"{arguments.input} tokens in (about), {arguments.tokens} out, {arguments.rounds} rounds",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---|---:|---|" + "---:|" * (len(HEADINGS) - 3),
    ]
    for one in rows:
        served = one["way"] != BARE
        cells = [
            one["repository"],
            one["streams"],
            one["way"],
            f"{one['tokens_per_second']:.0f}",
            span(one["speed_ratios"]) if served else "-",
            f"{one['cpu_ms_per_token']:.3f} ({one['client_cpu_ms_per_token']:.3f})",
            span(one["cpu_ratios"]) if served else "-",
            f"{one['per_token_ms']:.2f}",
            span(one["per_token_ratios"]) if served else "-",
            f"{one['first_token_ms']:.0f}",
            f"{one['tokens_per_response']:.2f}",
            span(one["longest_gap_ms"], ".0f"),
            span(one["spread"]),
            len(one["errors"]),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def span(values: Sequence[float] | None, form: str = ".2f") -> str:
    """The median of some numbers, and the lowest and highest."""
    if not values:
        return "-"
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def serve_engine(connection: Connection, repository: Path) -> None:
    """The process of the bare engine: (prompts, tokens) in, a :class:`Sample` out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))
    engine = BareEngine(repository / ENGINE_DIR)
    answer_all(
        connection,
        lambda prompts, tokens: engine(
            [encoded.ids for encoded in tokenizer.encode_batch(list(prompts))], tokens
        ),
    )


def answer_all(connection: Connection, answer: Callable[..., Any]) -> None:
    """Answers until nobody asks any more."""
    # The kernel shares the processors out among sessions; the server has one of its own.
    os.setsid()
    connection.send("ready")
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            connection.send(answer(*question))
        except Exception as error:  # noqa: BLE001 - whoever asked ends with it
            connection.send(f"the measurement failed: {error!r}")


class BareEngine:
    """openvino_genai in this process, with the settings that Triton's model gives it.

    Args:
        folder: The engine directory.
    """

    def __init__(self, folder: Path) -> None:
        import openvino
        import openvino_genai

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = config["build_config"]
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 256
        scheduler.max_num_seqs = int(sizes["max_batch_size"])
        scheduler.num_kv_blocks = int(sizes["max_batch_size"]) * -(
            -int(sizes["max_seq_len"]) // int(sizes["tokens_per_block"])
        )
        scheduler.enable_prefix_caching = True
        with tempfile.TemporaryDirectory() as empty:
            tokenizer = openvino_genai.Tokenizer(empty)
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            folder, tokenizer, scheduler, "CPU", **config["runtime"]
        )
        self._genai, self._tensor = openvino_genai, openvino.Tensor
        self._ids: Iterator[int] = iter(range(2**62))

    def __call__(self, prompts: Sequence[list[int]], tokens: int) -> Sample:
        """Generates so many tokens for each prompt."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.set_eos_token_id(0)
        config.ignore_eos = True
        started, cpu = time.perf_counter(), time.process_time()
        handles = [
            self._pipeline.add_request(
                next(self._ids), self._tensor(np.array([ids], np.int64)), config
            )
            for ids in prompts
        ]
        streams = [Arrivals(started) for _ in handles]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for handle, stream in zip(handles, streams, strict=True):
                while handle.can_read():
                    stream.add(sum(len(out.generated_ids) for out in handle.read().values()))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return sample_of(streams, seconds, cpu=cpu, client_cpu=0.0)


class Arrivals:
    """When the tokens of one request came.

    Args:
        started: When it was sent.
    """

    def __init__(self, started: float) -> None:
        self.started = self.first = self.last = started
        self.tokens = self.first_tokens = self.responses = 0
        self.gap = 0.0
        self.error = ""

    def add(self, tokens: int) -> None:
        """So many tokens came, now."""
        now = time.perf_counter()
        if not tokens:
            return
        if self.tokens:
            self.gap = max(self.gap, now - self.last)
        else:
            self.first, self.first_tokens = now, tokens
        self.last = now
        self.tokens += tokens
        self.responses += 1


def sample_of(
    streams: Sequence[Arrivals], seconds: float, *, cpu: float, client_cpu: float
) -> Sample:
    """What a set of requests took, from the arrivals of each."""
    return Sample(
        tokens=sum(stream.tokens for stream in streams),
        seconds=seconds,
        cpu=cpu,
        client_cpu=client_cpu,
        first=[s.first - s.started for s in streams],
        per_token=[(s.last - s.first) / max(s.tokens - s.first_tokens, 1) for s in streams],
        gaps=[s.gap for s in streams],
        whole=[s.last - s.started for s in streams],
        responses=sum(s.responses for s in streams),
        errors=[s.error for s in streams if s.error],
    )


def serve_clients(connection: Connection, repository: Path, url: str) -> None:
    """The process of the clients: (model, prompts, tokens) in, a :class:`Sample` out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))
    clients = Clients(url, tokenizer)
    answer_all(connection, lambda *question: asyncio.run(clients.load(*question)))


async def gather(
    one: Callable[[str, int, Arrivals], Coroutine[Any, Any, None]],
    prompts: Sequence[str],
    tokens: int,
) -> Sample:
    """Sends requests together and reads each to its end.

    Args:
        one: Asks for so many tokens behind a prompt and notes what comes.
        prompts: One for each request.
        tokens: Generated for each.
    """
    started, cpu = time.perf_counter(), time.process_time()
    streams = [Arrivals(started) for _ in prompts]

    async def noted(prompt: str, stream: Arrivals) -> None:
        try:
            await one(prompt, tokens, stream)
        except Exception as error:  # noqa: BLE001 - counted, and shown in the table
            stream.error = repr(error)

    await asyncio.gather(*map(noted, prompts, streams))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return sample_of(streams, seconds, cpu=0.0, client_cpu=cpu)


class Clients:
    """Streams that are sent together.

    Args:
        url: Of the server's gRPC port.
        tokenizer: Of the model, for requests in tokens.
    """

    def __init__(self, url: str, tokenizer: Any) -> None:
        self._url, self._tokenizer = url, tokenizer

    async def load(self, model: str, prompts: Sequence[str], tokens: int) -> Sample:
        """Asks a model for so many tokens behind each prompt."""
        async with AsyncClient(self._url, model=model) as client:

            async def one(prompt: str, tokens: int, stream: Arrivals) -> None:
                if model == ENGINE:
                    chunks = client.send(self._in_tokens(prompt, tokens))
                else:
                    chunks = client.stream(prompt, max_tokens=tokens, end_id=-1)
                async for chunk in chunks:
                    stream.add(chunk.num_output_tokens or 0)

            return await gather(one, prompts, tokens)

    def _in_tokens(self, prompt: str, tokens: int) -> Any:
        ids = self._tokenizer.encode(prompt).ids
        message = new_message(
            ENGINE, outputs=("output_ids", "sequence_length", "num_output_tokens")
        )
        add_input(message, "input_ids", ids, datatype="INT32")
        add_input(message, "input_lengths", [len(ids)], datatype="INT32")
        add_input(message, "request_output_len", [tokens], datatype="INT32")
        add_input(message, "end_id", [-1], datatype="INT32")
        for name in ("streaming", "return_num_output_tokens"):
            add_input(message, name, [True], datatype="BOOL")
        return message


if __name__ == "__main__":
    main()

"""What serving costs: generated tokens per second of each way to the same engine.

    python benchmarks/serving.py --repository build/tiny-llama-int4-awq/repository
    python benchmarks/serving.py --repository DIR --streams 1 32 --rounds 9 --json result.json

In one run, on one machine, one after the other and again from the start in every round:

- ``engine``: openvino_genai's continuous batching in this process, called in a plain loop. It sets
  the pace that nothing above it can beat.
- ``tensorrt_llm``: the same engine in a real tritonserver, token ids in and out over gRPC.
- ``tensorrt_llm_bls`` and ``ensemble``: text in and text out, streamed over gRPC.
- ``transformers``: ``generate`` of the source model, as batches of the same prompts; only with
  ``--model``.

The clients run in this process and take part of the same processor. Every request is generated to
its full length, greedily. A number is the median over the rounds; the spread is that of the rounds
around it. Compare the ratios to ``engine`` rather than the numbers: a machine that is busy
elsewhere slows all ways down alike, and interleaving spreads what it does over all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench import PROMPTS
from pipeline.serving import serving
from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR
from pipeline.triton.tensors import BLS, ENGINE, ENSEMBLE
from trtllm_client import AsyncClient, add_input, new_message

# Takes prompts as token ids; returns the tokens generated.
Way = Callable[[Sequence[list[int]], int], int]


def main() -> None:
    arguments = parse()
    with ExitStack() as stack:
        ways = open_ways(arguments, stack)
        rows = measure(ways, arguments)
    print(table(rows, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--repository", type=Path, required=True, help="a repository for the CPU target"
    )
    parser.add_argument("--model", type=Path, help="its source model, to measure transformers too")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="of transformers")
    parser.add_argument("--tokens", type=int, default=128, help="generated per request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return parser.parse_args()


def open_ways(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Way]:
    """Starts everything that is measured, by its name in the table."""
    repository: Path = arguments.repository
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    server = stack.enter_context(serving(repository, folder / "triton.log"))
    ways: dict[str, Way] = {
        "engine": InProcess(repository / ENGINE_DIR, max(arguments.streams)),
        ENGINE: lambda prompts, tokens: asyncio.run(
            ids_over_grpc(server.grpc_url, prompts, tokens)
        ),
    }
    texts = dict(zip(map(tuple, encode(repository)), PROMPTS, strict=True))
    for model in (BLS, ENSEMBLE):
        ways[model] = lambda prompts, tokens, model=model: asyncio.run(
            texts_over_grpc(server.grpc_url, model, [texts[tuple(ids)] for ids in prompts], tokens)
        )
    if arguments.model:
        ways["transformers"] = Transformers(arguments.model)
    return ways


def measure(ways: dict[str, Way], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per way and number of streams."""
    prompts = encode(arguments.repository)
    cells = [
        (streams, name)
        for streams in sorted({*arguments.streams, *arguments.batches})
        for name in ways
        if streams in (arguments.batches if name == "transformers" else arguments.streams)
    ]
    speeds: dict[tuple[int, str], list[float]] = {cell: [] for cell in cells}
    for number in range(arguments.rounds + 1):
        for streams, name in cells:
            asked = list(islice(cycle(prompts), streams))
            started = time.perf_counter()
            generated = ways[name](asked, arguments.tokens)
            seconds = time.perf_counter() - started
            if generated != streams * arguments.tokens:
                raise SystemExit(
                    f"{name} gave {generated} tokens, not {streams}x{arguments.tokens}"
                )
            # The first round pays for what is set up once.
            if number:
                speeds[streams, name].append(generated / seconds)
    return [
        {
            "way": name,
            "streams": streams,
            "tokens_per_second": statistics.median(found),
            "lowest": min(found),
            "highest": max(found),
            "ratio_to_engine": ratio(speeds, streams, name),
        }
        for (streams, name), found in speeds.items()
    ]


def ratio(speeds: dict[tuple[int, str], list[float]], streams: int, name: str) -> float | None:
    """Median over the rounds of a way's speed over the engine's in the same round."""
    base = speeds.get((streams, "engine"))
    if not base:
        return None
    return statistics.median(a / b for a, b in zip(speeds[streams, name], base, strict=True))


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """The rows as Markdown."""
    lines = [
        f"{arguments.tokens} tokens per request, median of {arguments.rounds} rounds",
        "",
        "| streams | way | tokens/s | lowest to highest | of the engine's |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        share = row["ratio_to_engine"]
        lines.append(
            f"| {row['streams']} | {row['way']} | {row['tokens_per_second']:.0f} "
            f"| {row['lowest']:.0f} to {row['highest']:.0f} "
            f"| {'-' if share is None else f'{share:.2f}'} |"
        )
    return "\n".join(lines)


def encode(repository: Path) -> list[list[int]]:
    """The prompts as token ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


class InProcess:
    """The engine in this process, with the settings that Triton's model gives it.

    Args:
        engine: The engine directory.
        streams: Sequences decoded together at most.
    """

    def __init__(self, engine: Path, streams: int) -> None:
        import openvino
        import openvino_genai

        config = json.loads((engine / "config.json").read_text(encoding="utf-8"))
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 256
        scheduler.max_num_seqs = streams
        tokens_per_block = int(config["build_config"]["tokens_per_block"])
        max_seq_len = int(config["build_config"]["max_seq_len"])
        scheduler.num_kv_blocks = streams * -(-max_seq_len // tokens_per_block)
        scheduler.enable_prefix_caching = True
        with tempfile.TemporaryDirectory() as empty:
            tokenizer = openvino_genai.Tokenizer(empty)
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            engine, tokenizer, scheduler, "CPU", **config["runtime"]
        )
        self._genai, self._tensor = openvino_genai, openvino.Tensor
        self._ids: Iterator[int] = iter(range(2**62))

    def __call__(self, prompts: Sequence[list[int]], tokens: int) -> int:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.set_eos_token_id(0)
        config.ignore_eos = True
        handles = [
            self._pipeline.add_request(
                next(self._ids), self._tensor(np.array([ids], np.int64)), config
            )
            for ids in prompts
        ]
        generated = 0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for handle in handles:
                while handle.can_read():
                    generated += sum(len(out.generated_ids) for out in handle.read().values())
        return generated


class Transformers:
    """``generate`` of a Hugging Face model, greedy, without stopping early."""

    def __init__(self, model: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def __call__(self, prompts: Sequence[list[int]], tokens: int) -> int:
        shortest = min(map(len, prompts))
        ids = self._torch.tensor([prompt[:shortest] for prompt in prompts])
        with self._torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return int(output[:, shortest:].numel())


async def ids_over_grpc(url: str, prompts: Sequence[list[int]], tokens: int) -> int:
    """Token ids to token ids with the model ``tensorrt_llm``."""
    async with AsyncClient(url, model=ENGINE) as client:

        async def one(ids: list[int]) -> int:
            message = new_message(ENGINE, outputs=("output_ids", "num_output_tokens"))
            add_input(message, "input_ids", ids, datatype="INT32")
            add_input(message, "input_lengths", [len(ids)], datatype="INT32")
            add_input(message, "request_output_len", [tokens], datatype="INT32")
            add_input(message, "end_id", [-1], datatype="INT32")
            for name in ("streaming", "return_num_output_tokens"):
                add_input(message, name, [True], datatype="BOOL")
            return sum([chunk.num_output_tokens or 0 async for chunk in client.send(message)])

        return sum(await asyncio.gather(*map(one, prompts)))


async def texts_over_grpc(url: str, model: str, prompts: Sequence[str], tokens: int) -> int:
    """Text to text with ``tensorrt_llm_bls`` or ``ensemble``."""
    async with AsyncClient(url, model=model) as client:

        async def one(prompt: str) -> int:
            stream = client.stream(prompt, max_tokens=tokens, end_id=-1)
            return sum([chunk.num_output_tokens or 0 async for chunk in stream])

        return sum(await asyncio.gather(*map(one, prompts)))


if __name__ == "__main__":
    main()

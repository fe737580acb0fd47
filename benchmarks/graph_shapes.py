"""What the joined product of fc and gate saves the CPU engine, on one checkpoint.

    python benchmarks/graph_shapes.py CHECKPOINT                   # one stream
    python benchmarks/graph_shapes.py CHECKPOINT --threads 1       # where the machine is busy

The graphs are decoded by openvino_genai in this process, all open side by side, in an order that is
drawn anew in every round: ``engine`` as ``compile`` makes it, ``engine again`` the same once more
(what separates these two is not the graph), and ``unfused`` with two products instead.

``wall`` and ``cpu`` are milliseconds of a step: of a burst the median, and of the rounds. The ratio
is that of ``engine`` over the graph, paired by round, with its quartiles; above 1 is faster. Two
threads wait for each other on a busy machine, so read ``cpu`` of one thread there.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import openvino as ov
import openvino_genai
from numpy.typing import NDArray

from pipeline.checkpoint import open_checkpoint
from pipeline.targets.openvino import graph, linears

EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
BASE, AGAIN, UNFUSED = "engine", "engine again", "unfused"
PROMPT = 64


def main() -> None:
    arguments = parse()
    opened = open_checkpoint(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        pipelines = {}
        for name in (BASE, AGAIN, UNFUSED):
            model = Path(folder) / name.replace(" ", "-")
            model.mkdir()
            joins = linears.joinable if name != UNFUSED else (lambda *_: False)
            with mock.patch.object(graph, "joinable", joins):
                built = graph.build_model(opened.weights(), opened.facts)
            ov.save_model(built, model / "openvino_model.xml", compress_to_fp16=False)
            pipelines[name] = open_pipeline(model, arguments.threads)
        print(table(measure(pipelines, opened.facts.vocab_size, arguments)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a TensorRT-LLM checkpoint")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32, help="decoded in a burst")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, help="of each; OpenVINO's own choice if not")
    return parser.parse_args()


def open_pipeline(model: Path, threads: int | None) -> Any:
    """The model in continuous batching, with exact arithmetic."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens, scheduler.num_kv_blocks = 256, 128
    limit = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    with tempfile.TemporaryDirectory() as empty:
        tokenizer = openvino_genai.Tokenizer(empty)
    return openvino_genai.ContinuousBatchingPipeline(
        model, tokenizer, scheduler, "CPU", **EXACT, **limit
    )


def measure(
    pipelines: Mapping[str, Any], vocabulary: int, arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of a step, wall and processor, of each round.

    Raises:
        SystemExit: A graph generates other tokens than the engine.
    """
    random = np.random.default_rng(0)
    prompts = random.integers(3, vocabulary, (arguments.streams, 1, PROMPT))
    ids, names = itertools.count(), list(pipelines)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    generated: dict[str, list[int]] = {}
    for number in range(arguments.rounds + 1):
        for name in random.permutation(names):
            steps, tokens = decode(pipelines[name], prompts, arguments.tokens, ids)
            if tokens != generated.setdefault(BASE, tokens):
                raise SystemExit(f"{name} generates other tokens")
            if number:  # the first round pays for what is set up once
                wall, cpu = (statistics.median(one) * 1e3 for one in zip(*steps, strict=True))
                found[name].append((wall, cpu))
    return found


def decode(
    pipeline: Any, prompts: NDArray[np.int64], tokens: int, ids: Iterator[int]
) -> tuple[list[tuple[float, float]], list[int]]:
    """Decodes all prompts together; seconds of each step behind the first, and the tokens."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.set_eos_token_id(0)
    config.ignore_eos = True
    handles = [pipeline.add_request(next(ids), ov.Tensor(ids_), config) for ids_ in prompts]
    steps, generated = [], []
    while pipeline.has_non_finished_requests():
        wall, cpu = time.perf_counter(), time.process_time()
        pipeline.step()
        steps.append((time.perf_counter() - wall, time.process_time() - cpu))
        for handle in handles:
            while handle.can_read():
                for output in handle.read().values():
                    generated += output.generated_ids
    return steps[1:], generated


def table(found: Mapping[str, list[tuple[float, float]]]) -> str:
    """The graphs as Markdown."""
    lines = ["| graph | wall ms | ratio | cpu ms | ratio |", "|---|---:|---:|---:|---:|"]
    for name, rounds in found.items():
        cells = [name]
        for which in (0, 1):
            ratios = [a[which] / b[which] for a, b in zip(found[BASE], rounds, strict=True)]
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            cells.append(f"{statistics.median(one[which] for one in rounds):.2f}")
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Wall time of AWQ calibration: this pipeline against ModelOpt's own example flow.

    python benchmarks/awq_calibration.py
    python benchmarks/awq_calibration.py --random --samples 8 --length 128 --rounds 2

Both calibrate the same float32 model for ``int4_awq`` on the same rows of tokens:

* ``example``: ``mtq.quantize`` with ``create_forward_loop`` of ModelOpt at its batch size of 1, as
  ``examples/llm_ptq/hf_ptq.py`` calls them, with the threads that the pipeline takes, and with as
  many as torch takes by itself where those are more (``--threads`` names others; on a busy machine
  threads that wait for each other are slower than one).
* ``pipeline``: the quantize stage's calibration with ``--batch-size`` rows at a time, with the
  threads that the stage takes: one for a small model, whose bytes must not depend on the machine.

Loading and export are the same for both and are not timed. Every round runs each flow once, in an
order that rotates, after a run of each on one row that does not count. The ratio of a round is that
of two runs of this round. Processor seconds are those of all threads; on a busy machine they say
more than wall time does, in which other programs are. ``--random`` makes a Llama of 97 million
parameters with random weights and tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.dependencies import require
from pipeline.progress import Silent
from pipeline.quantize.calibrate import calibrate
from pipeline.quantize.formats import modelopt_config
from pipeline.quantize.loading import count_parameters
from pipeline.recipe.schema import QuantizeSection
from pipeline.source.lines import read_texts, sample
from pipeline.source.loading import load_causal_lm
from pipeline.source.runtime import deterministic, offline_and_quiet
from pipeline.source.tokens import Rows, batches, load_tokenizer, token_rows

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny_llama"
RANDOM = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 8000,
    "max_position_embeddings": 1024,
}
Flow = Callable[[Any], None]


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        model = write_random(Path(folder)) if arguments.random else arguments.model
        rows = random_rows(arguments) if arguments.random else text_rows(arguments)
        measure(model, rows, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--calibration", type=Path, default=EXAMPLE / "data" / "calibration.jsonl")
    parser.add_argument("--random", action="store_true", help="instead of --model")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens per sample, at most")
    parser.add_argument("--batch-size", type=int, default=16, help="rows, for the pipeline")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", help="of the example")
    return parser.parse_args()


def measure(model: Path, rows: Rows, arguments: argparse.Namespace) -> None:
    """Prints one Markdown table."""
    parameters, default = count_parameters(model), torch.get_num_threads()
    with deterministic(parameters):
        own = torch.get_num_threads()
    batch = arguments.batch_size
    counts = sorted(set(arguments.threads or (own, default)))
    flows: dict[tuple[str, int, int], Flow] = {
        ("example", 1, threads): example(rows) for threads in counts
    }
    flows["pipeline", batch, own] = pipeline(rows, batch)
    runs: dict[tuple[str, int, int], list[tuple[float, float]]] = {flow: [] for flow in flows}
    for flow in (example, lambda few: pipeline(few, batch)):
        timed(model, own, flow(rows[:1]))
    for number in range(arguments.rounds):
        order = list(flows)
        for key in order[number % len(order) :] + order[: number % len(order)]:
            runs[key].append(timed(model, key[2], flows[key]))
    print(f"{parameters:,} parameters, {len(rows)} rows of {len(rows[0])} tokens\n")
    print("| flow | batch size | threads | wall seconds | ratio | processor seconds | ratio |")
    print("|---|---|---|---|---|---|---|")
    base = runs["example", 1, counts[0]]
    for (name, size, threads), found in runs.items():
        cells = [name, str(size), str(threads)]
        for own_seconds, base_seconds in zip(
            zip(*found, strict=True), zip(*base, strict=True), strict=True
        ):
            cells += compared(own_seconds, base_seconds)
        print(f"| {' | '.join(cells)} |", flush=True)


def compared(seconds: Sequence[float], base: Sequence[float]) -> tuple[str, str]:
    """The seconds of every round, and the median and extremes of the rounds' ratios."""
    ratios = [one / other for one, other in zip(seconds, base, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return ", ".join(f"{value:.1f}" for value in seconds), spread


def timed(directory: Path, threads: int, flow: Flow) -> tuple[float, float]:
    """Wall and processor seconds that a flow takes on a fresh model."""
    before = torch.get_num_threads()
    with offline_and_quiet(Silent()):
        model = load_causal_lm(directory, torch.float32)
        torch.set_num_threads(threads)
        try:
            wall, processor = time.perf_counter(), time.process_time()
            flow(model)
            return time.perf_counter() - wall, time.process_time() - processor
        finally:
            torch.set_num_threads(before)


def example(rows: Rows) -> Flow:
    """The calibration of ModelOpt's example."""

    def run(model: Any) -> None:
        mtq = require("modelopt.torch.quantization", "quantize")
        utils = require("modelopt.torch.utils.dataset_utils", "quantize")
        data = [{"input_ids": torch.tensor(row)} for row in rows]
        loader: Any = torch.utils.data.DataLoader(data, batch_size=1)  # type: ignore[arg-type]
        # As the loop's own data set would: the calibration needs no cache.
        model.config.use_cache = False
        loop = utils.create_forward_loop(dataloader=loader)
        mtq.quantize(model, modelopt_config(section(1)), forward_loop=loop)

    return run


def pipeline(rows: Rows, batch_size: int) -> Flow:
    """The calibration of the quantize stage."""

    def run(model: Any) -> None:
        calibrate(model, section(batch_size), batches(rows, batch_size), Silent())

    return run


def section(batch_size: int) -> QuantizeSection:
    return QuantizeSection.model_validate(
        {"format": "int4_awq", "calibration": {"text": "rows.txt", "batch_size": batch_size}}
    )


def text_rows(arguments: argparse.Namespace) -> Rows:
    """Rows as the quantize stage makes them of a text."""
    texts = sample(read_texts(arguments.calibration), arguments.samples, 1234)
    return token_rows(texts, load_tokenizer(arguments.model), arguments.length)


def random_rows(arguments: argparse.Namespace) -> Rows:
    generator = random.Random(7)
    size = int(RANDOM["vocab_size"])
    return [
        [generator.randrange(size) for _ in range(arguments.length)]
        for _ in range(arguments.samples)
    ]


def write_random(directory: Path) -> Path:
    torch.manual_seed(7)
    transformers: Any = require("transformers", "quantize")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**RANDOM))
    model.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    main()

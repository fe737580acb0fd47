"""Wall time of int4_awq from source to checkpoint: this pipeline against ModelOpt's example flow.

    python benchmarks/awq_time.py
    python benchmarks/awq_time.py --samples 8 --length 256 --rounds 3

The model is a Llama of GPT-2 small's size, 124 million random weights in float16, with 50,257 rows
in its vocabulary. Both flows see the same rows of tokens and write a TensorRT-LLM checkpoint in
groups of 128, each in a process of its own that is timed from start to end:

* ``example``: what ``examples/llm_ptq/hf_ptq.py`` of ModelOpt and ``examples/quantization``
  ``/quantize.py`` of TensorRT-LLM do, which themselves refuse to run without a GPU: the model by
  transformers in the dtype of its files, ``mtq.quantize(model, INT4_AWQ_CFG, forward_loop)`` with
  ModelOpt's ``create_forward_loop`` over one row at a time, which is the default of both, and
  ``export_tensorrt_llm_checkpoint``.
* ``pipeline``: ``trtllm-pipeline run --until quantize`` with ``--batch-size`` rows at a time.

A round has one run of each; every other one is in the reverse order, and one run of each that does
not count comes first. The ratio is that of a round's two runs, with Student's 95 % interval on its
logarithm. Then the two checkpoints are compared, tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from by_size.measured import Ran, run
from by_size.model import Shape, config_of, write_json, write_model
from by_size.stages import Job, Setting

from pipeline.bench.intervals import over_rounds, paired_ratio
from pipeline.verdict.estimate import Estimate

ROWS = "rows.json"
SEED = 1234


class Tied(Shape):
    """A Llama whose head is its embedding, as GPT-2's is."""

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape."""
        return (tensor for tensor in super().tensors() if tensor[0] != "lm_head.weight")


GPT2_SMALL = Tied(768, 2048, 12, 12, 12, 50257)


def main() -> None:
    arguments = parse()
    if arguments.example:
        example(arguments.example)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        measure(Path(name), arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row, at most")
    parser.add_argument("--batch-size", type=int, default=16, help="rows, for the pipeline")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=GPT2_SMALL.layers, help="fewer: a trial")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    parser.add_argument("--example", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Prints two Markdown tables."""
    shape = Tied(**{**vars(GPT2_SMALL), "layers": arguments.layers})
    write_model(shape, folder / "model")
    config = config_of(shape) | {"tie_word_embeddings": True}
    write_json(folder / "model" / "config.json", config)
    setting = Setting(arguments.samples, arguments.length, batch=arguments.batch_size)
    job = Job(folder, shape, "int4_awq", setting)
    rows = write_rows(folder, job.recipe)
    job.prepare("source")
    runs: dict[str, list[Ran]] = {"example": [], "pipeline": []}
    for number in range(arguments.rounds + 1):
        order = list(runs) if number % 2 else list(runs)[::-1]
        for name in order:
            ran = ours(job) if name == "pipeline" else theirs(folder)
            print(f"{name} {ran.seconds:.1f} s", file=sys.stderr, flush=True)
            if number:
                runs[name].append(ran)
    print(f"{shape.parameters:,} parameters, {len(rows)} rows of {len(rows[0])} tokens\n")
    print("| flow | wall seconds | over the example | processor seconds | over the example |")
    print("|---|---|---|---|---|")
    for name, found in runs.items():
        cells = []
        for column in ("seconds", "processor_seconds"):
            own, base = ([getattr(ran, column) for ran in of] for of in (found, runs["example"]))
            cells += [text(over_rounds(own)), text(paired_ratio(own, base))]
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    compare(folder / "example", job.artifact("quantize"))


def text(estimate: Estimate) -> str:
    """A number with its interval."""
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def ours(job: Job) -> Ran:
    """Runs the quantize stage, whatever is cached."""
    output, errors = job.outputs("quantize")
    command = [*job.command("quantize"), "--force", "quantize"]
    return ended(run(command, output=output, errors=errors, sampled=False), errors)


def theirs(folder: Path) -> Ran:
    """Runs the example flow."""
    log = folder / "example.log"
    command = [sys.executable, __file__, "--example", str(folder)]
    return ended(run(command, output=log, errors=log, sampled=False), log)


def ended(ran: Ran, log: Path) -> Ran:
    """Ends the benchmark with what a run printed that failed."""
    if ran.code:
        raise SystemExit(log.read_text(encoding="utf-8")[-3000:])
    return ran


def write_rows(folder: Path, recipe: Path) -> list[list[int]]:
    """Writes the rows that the quantize stage calibrates on.

    A process of its own makes them: this one has to stay small, see by_size/measured.py.
    """
    program = (
        "import json, sys\nfrom pathlib import Path\n"
        "from pipeline.recipe.file import load_recipe\n"
        "from pipeline.source.lines import read_texts, sample\n"
        "from pipeline.source.rendering import Renderer\n"
        "from pipeline.source.tokens import load_tokenizer, token_rows\n"
        "recipe = load_recipe(Path(sys.argv[1]))\n"
        "wanted, model = recipe.quantize.calibration, Path(recipe.model.source)\n"
        "texts = sample(read_texts(Path(wanted.text)), wanted.samples, wanted.seed)\n"
        "texts = list(Renderer(model).texts(texts))\n"
        "rows = token_rows(texts, load_tokenizer(model), wanted.sequence_length)\n"
        "Path(sys.argv[2]).write_text(json.dumps(rows))\n"
    )
    path = folder / ROWS
    subprocess.run([sys.executable, "-c", program, str(recipe), str(path)], check=True)
    return list(json.loads(path.read_text(encoding="utf-8")))


def example(folder: Path) -> None:
    """Does what ModelOpt's and TensorRT-LLM's scripts do."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_tensorrt_llm_checkpoint
    from modelopt.torch.utils import create_forward_loop
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    loading: Any = AutoModelForCausalLM
    model = loading.from_pretrained(folder / "model", dtype="auto").eval()
    # As the loop's own data set would: calibration needs no cache.
    model.config.use_cache = False
    rows = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    data: Any = [{"input_ids": torch.tensor(row)} for row in rows]
    loop = create_forward_loop(dataloader=torch.utils.data.DataLoader(data, batch_size=1))
    mtq.quantize(model, mtq.INT4_AWQ_CFG, forward_loop=loop)
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model, "llama", model.dtype, export_dir=folder / "example", inference_tensor_parallel=1
        )


def compare(one: Path, other: Path) -> None:
    """Prints how far the tensors of two checkpoints are apart."""
    from safetensors.numpy import load_file

    first, second = (load_file(path / "rank0.safetensors") for path in (one, other))
    print("| tensors of a linear | equal | median, 99 % and largest relative difference |")
    print("|---|---|---|")
    for kind in ("prequant_scaling_factor", "weights_scaling_factor"):
        names = [name for name in second if name.endswith(kind)]
        pairs = [(first[name].astype("f8"), second[name].astype("f8")) for name in names]
        apart = np.concatenate([np.abs(a / b - 1).ravel() for a, b in pairs])
        equal = sum(np.array_equal(a, b) for a, b in pairs)
        spread = ", ".join(f"{np.quantile(apart, share):.2g}" for share in (0.5, 0.99, 1))
        print(f"| {kind} | {equal} of {len(pairs)} | {spread} |")
    names = [name for name, values in second.items() if values.dtype in (np.int8, np.uint8)]
    same = sum(np.count_nonzero(codes(first[n]) == codes(second[n])) for n in names)
    count = sum(2 * math.prod(second[name].shape) for name in names)
    print(f"\n{same / count:.2%} of {count:,} codes are equal")


def codes(packed: Any) -> Any:
    """Two of 4 bits from each byte."""
    values = packed.view(np.uint8)
    return np.stack([values & 15, values >> 4])


if __name__ == "__main__":
    main()

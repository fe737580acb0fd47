"""What the CPU target's execution options cost: engine logits against the torch reference.

    python benchmarks/numerics.py
    python benchmarks/numerics.py --model DIR --calibration TEXT --heldout TEXT --tokens 20000

Prints one Markdown table. ``rel-rms`` is rms(engine - reference) / rms(reference) over all logits;
the reference computes the same checkpoint files in float32. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny_llama"
FORMATS = ("float16", "int4_awq", "int8_sq")
# Name, inference_precision, kv_cache_precision, dynamic_quantization_group_size.
OPTIONS = (
    ("exact (default)", "f32", "f32", 0),
    ("KV cache f16", "f32", "f16", 0),
    ("KV cache u8", "f32", "u8", 0),
    ("INT8 activations, groups of 32", "f32", "f32", 32),
    ("bf16 execution", "bf16", "bf16", 0),
    ("bf16 execution, INT8 activations", "bf16", "bf16", 32),
)


def main() -> None:
    arguments = parse()
    print("| format | execution | rel-rms | top-1 agreement | perplexity | change |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.formats:
            for row in measure(name, arguments, Path(folder) / name):
                print(f"| {' | '.join(row)} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--calibration", type=Path, default=EXAMPLE / "data" / "calibration.jsonl")
    parser.add_argument("--heldout", type=Path, default=EXAMPLE / "data" / "heldout.jsonl")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--tokens", type=int, default=10000)
    parser.add_argument("--length", type=int, default=256, help="tokens per window")
    return parser.parse_args()


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> Iterator[Sequence[str]]:
    """One row per execution option of one format."""
    import torch

    from pipeline.reference import load_reference

    checkpoint = quantize(name, arguments, folder / "checkpoint")
    ids = windows(arguments)
    with torch.inference_mode():
        model: Any = load_reference(checkpoint)
        expected = model(torch.tensor(ids)).logits.numpy()
    base = perplexity(expected, ids)
    yield name, "torch reference", "0", "1", f"{base:.4f}", ""
    for number, (label, *options) in enumerate(OPTIONS):
        found = engine_logits(checkpoint, ids, options, folder / str(number))
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        agreement = (found.argmax(-1) == expected.argmax(-1)).mean()
        value = perplexity(found, ids)
        change = f"{value / base - 1:+.3%}"
        yield name, label, f"{error:.1e}", f"{agreement:.4f}", f"{value:.4f}", change


def quantize(name: str, arguments: argparse.Namespace, output: Path) -> Path:
    """Runs the quantize stage."""
    from pipeline.progress import Silent
    from pipeline.stages.base import StageContext
    from pipeline.stages.quantize import STAGE
    from pipeline.store.artifact import Artifact

    output.mkdir(parents=True)
    source = Artifact("source", "", "", arguments.model, {})
    STAGE.run(StageContext(recipe(name, arguments), {"source": source}, output, Silent()))
    return output


def recipe(name: str, arguments: argparse.Namespace, **openvino: Any) -> Any:
    from pipeline.recipe.schema import Recipe

    calibration = {"text": str(arguments.calibration), "sequence_length": arguments.length}
    return Recipe.model_validate(
        {
            "name": "numerics",
            "model": {"source": str(arguments.model)},
            "quantize": {"format": name, "calibration": calibration},
            "compile": {"openvino": openvino},
        }
    )


def windows(arguments: argparse.Namespace) -> np.ndarray:
    """Held-out text as int64 [windows, length], so that no padding enters the logits."""
    from pipeline.source.lines import read_texts
    from pipeline.source.tokens import load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    ids = [token for text in read_texts(arguments.heldout) for token in tokenizer.encode(text)]
    count = min(arguments.tokens, len(ids)) // arguments.length
    return np.array(ids[: count * arguments.length], np.int64).reshape(count, arguments.length)


def engine_logits(
    checkpoint: Path, ids: np.ndarray, options: Sequence[Any], output: Path
) -> np.ndarray:
    """Logits of the compiled engine; half of each window is prefill, the rest comes in two steps,
    which read the cache back."""
    import openvino

    from model_repo.tensorrt_llm.exactness import exact_properties
    from pipeline.checkpoint.quantization import W8A8
    from pipeline.progress import Silent
    from pipeline.targets import get_target

    names = ("inference_precision", "kv_cache_precision", "dynamic_quantization_group_size")
    arguments = argparse.Namespace(model=checkpoint, calibration="none", length=ids.shape[1])
    settings = recipe("float16", arguments, **dict(zip(names, options, strict=True)))
    output.mkdir()
    get_target("openvino").compile(checkpoint, settings, output, Silent())
    config = json.loads((output / "config.json").read_text())
    properties = config["runtime"]
    if config["pretrained_config"]["quantization"]["quant_algo"] == W8A8:
        properties |= exact_properties(openvino)
    compiled = openvino.Core().compile_model(output / "openvino_model.xml", "CPU", properties)
    request = compiled.create_infer_request()
    batch, length = ids.shape
    parts, bounds = [], [0, length // 2, 3 * length // 4, length]
    for start, end in pairwise(bounds):
        request.infer(
            {
                "input_ids": ids[:, start:end],
                "attention_mask": np.ones((batch, end), np.int64),
                "position_ids": np.tile(np.arange(start, end, dtype=np.int64), (batch, 1)),
                "beam_idx": np.arange(batch, dtype=np.int32),
            }
        )
        parts.append(request.get_tensor("logits").data.copy())
    return np.concatenate(parts, axis=1)


def perplexity(logits: np.ndarray, ids: np.ndarray) -> float:
    """exp of the mean negative log-likelihood of each next token."""
    shifted = logits[:, :-1].astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=-1))
    chosen = np.take_along_axis(shifted, ids[:, 1:, None], axis=-1)[..., 0]
    return float(np.exp((log_sums - chosen).mean()))


if __name__ == "__main__":
    main()

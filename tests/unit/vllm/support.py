"""Checkpoints of every architecture and format, made of random codes instead of a calibration."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.expected import ExpectedTensor, expected_tensors
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.models.facts import ModelFacts
from pipeline.progress import Silent
from pipeline.quantize.export import checkpoint_config
from pipeline.recipe.schema import Recipe
from pipeline.targets.vllm.write import write_export
from tests.conftest import DEMO_MODEL

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
}
# Every rank has these as they are; its own part of all others.
SHARED = ("norm.weight", "ln_f.weight", "activation_scaling_factor", "prequant_scaling_factor")


def recipe(source: Path, name: str = "int4_awq", **changes: Any) -> Recipe:
    """A recipe for vLLM, whose quantization nobody runs.

    Args:
        changes: Keys of ``quantize``, ``compile`` and ``vllm``, by the section's name.
    """
    text = source / "text.txt"
    text.write_text("w1 w2 w3\n")
    row = {"format": name, "calibration": {"text": str(text)}}
    if name in ("int4_awq", "int8_sq"):
        row["portable"] = True
    compiled = {"target": "vllm", "max_seq_len": 64, "max_input_len": 32, "max_num_tokens": 64}
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"source": str(source), **changes.pop("model", {})},
            "quantize": {**row, **changes.pop("quantize", {})},
            "compile": {**compiled, "vllm": changes.pop("vllm", {}), **changes.pop("compile", {})},
        }
    )


def write_checkpoint(source: Path, wanted: Recipe, output: Path, **values: Any) -> Path:
    """A checkpoint of the recipe's format and ranks.

    Args:
        values: Arrays or numbers to take for tensors whose names end like this.
    """
    output.mkdir(parents=True)
    facts = ModelFacts.from_directory(source)
    written = checkpoint_config(facts, wanted, "test")
    (output / "config.json").write_text(json.dumps(written))
    config = CheckpointConfig.from_directory(output)
    for rank in range(config.world_size):
        tensors = {
            name: _draw(name, rank, tensor, values)
            for name, tensor in expected_tensors(config, rank).items()
        }
        if facts.tie_word_embeddings and "transformer.vocab_embedding.weight" in tensors:
            tensors["lm_head.weight"] = tensors["transformer.vocab_embedding.weight"]
        save_file(tensors, output / f"rank{rank}.safetensors")
    return output


def _draw(name: str, rank: int, tensor: ExpectedTensor, values: dict[str, Any]) -> np.ndarray:
    own = 0 if name.endswith(SHARED) else rank
    random = np.random.default_rng((zlib.crc32(name.encode()), own))
    dtype, shape = numpy_dtype(tensor.dtypes[0]), tensor.shape
    for ending, value in values.items():
        if name.endswith(ending):
            return np.broadcast_to(np.asarray(value, dtype), shape).copy()
    if name.endswith("prequant_scaling_factor"):
        return np.ones(shape, dtype)
    if name.endswith("activation_scaling_factor"):
        return np.full(shape, 0.05, dtype)
    if tensor.is_scale:
        return random.uniform(0.002, 0.004, shape).astype(dtype)
    if dtype == np.int8:
        return random.integers(-128, 128, shape).astype(np.int8)
    if name.endswith(("norm.weight", "ln_f.weight")):
        return random.uniform(0.5, 1.5, shape).astype(dtype)
    return random.normal(scale=0.1 if tensor.shape[-1:] else 1.0, size=shape).astype(dtype)


def write_model(folder: Path, **changes: Any) -> Path:
    """A snapshot without weights, which an export does not read."""
    folder.mkdir()
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **SIZES, **changes}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE.txt").write_text("Anybody may.")
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


def export(source: Path, folder: Path, name: str = "int4_awq", **changes: Any) -> Path:
    """The export of a checkpoint, which lies beside it.

    Args:
        changes: Of :func:`recipe`; and ``values`` of :func:`write_checkpoint`.
    """
    values = changes.pop("values", {})
    wanted = recipe(source, name, **changes)
    checkpoint = write_checkpoint(source, wanted, folder / "checkpoint", **values)
    output = folder / "export"
    output.mkdir()
    write_export(checkpoint, source, wanted, output, Silent())
    return output

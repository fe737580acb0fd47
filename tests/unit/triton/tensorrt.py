"""TensorRT recipes, engine configurations and repositories for tests; nothing in them runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.recipe.schema import Recipe
from tests.unit.triton.by_target import render_configs

GOLDEN = Path(__file__).parents[2] / "golden" / "triton" / "tensorrt"

# name: quantize.format, kv_cache, tensor_parallel, max_batch_size, input, sequence, step tokens
_CASES = {
    "llama-3.1-8b-int4-awq-tp1": ("int4_awq", None, 1, 64, 4096, 8192, 8192),
    "qwen2.5-7b-int8-sq-tp2": ("int8_sq", None, 2, 64, 4096, 8192, 8192),
    "llama-3.1-70b-fp8-tp4": ("fp8", "fp8", 4, 128, 8192, 16384, 16384),
}
NAMES = tuple(_CASES)
LLAMA_8B, QWEN_7B, LLAMA_70B = NAMES


def recipe(name: str = LLAMA_8B, **serve: object) -> Recipe:
    quant, kv_cache, tp, batch, input_len, seq_len, num_tokens = _CASES[name]
    return Recipe.model_validate(
        {
            "schema": 1,
            "name": name,
            "model": {"source": "somewhere/a-model"},
            "quantize": {
                "format": quant,
                "kv_cache": kv_cache,
                "calibration": {"text": "calibration.jsonl"},
            },
            "compile": {
                "target": "tensorrt",
                "max_batch_size": batch,
                "max_input_len": input_len,
                "max_seq_len": seq_len,
                "max_num_tokens": num_tokens,
                "tensor_parallel": tp,
            },
            "serve": serve,
        }
    )


def engine_config(name: str = LLAMA_8B) -> dict[str, Any]:
    """An engine's config.json, of the shape TensorRT-LLM 1.2.1 writes."""
    return json.loads((GOLDEN / name / "engine.json").read_text())


def write_engine(directory: Path, config: dict[str, Any]) -> None:
    """An engine directory whose rank files say that they are placeholders."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    for rank in range(config["pretrained_config"]["mapping"]["world_size"]):
        (directory / f"rank{rank}.engine").write_text("placeholder, not a TensorRT engine\n")


def write_repository(root: Path, name: str = LLAMA_8B) -> Path:
    """A repository that the validator accepts; tests break one thing in it."""
    config = engine_config(name)
    for model, text in render_configs(recipe(name), config).items():
        (root / model / "1").mkdir(parents=True)
        (root / model / "config.pbtxt").write_text(text)
        if model not in ("ensemble", "tensorrt_llm"):
            (root / model / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    tokenizer = root / "preprocessing/1/tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    write_engine(root / "tensorrt_llm/1/engine", config)
    return root

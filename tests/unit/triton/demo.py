"""A demo-sized repository with tiny stand-ins for engine and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.recipe.schema import Recipe
from tests.unit.triton.by_target import render_configs

ENGINE = {
    "version": "0",
    "target": "openvino",
    "pretrained_config": {"architecture": "LlamaForCausalLM", "vocab_size": 1024},
    "build_config": {"max_batch_size": 32, "max_input_len": 384, "max_seq_len": 512},
}


def demo_recipe(**serve: object) -> Recipe:
    return Recipe.model_validate(
        {
            "schema": 1,
            "name": "tiny-llama",
            "model": {"source": "examples/tiny_llama/model"},
            "quantize": {"format": "float16"},
            "compile": {"max_batch_size": 32, "max_input_len": 384, "max_seq_len": 512},
            "serve": serve,
        }
    )


def write_engine(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(ENGINE))
    (directory / "openvino_model.xml").write_text("<net/>")
    (directory / "openvino_model.bin").write_bytes(b"\0" * 8)


def write_repository(root: Path, **serve: object) -> Path:
    """A repository that the validator accepts; tests break one thing in it."""
    for name, text in render_configs(demo_recipe(**serve), ENGINE).items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(text)
        if name != "ensemble":
            (root / name / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    tokenizer = root / "preprocessing/1/tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    write_engine(root / "tensorrt_llm/1/engine")
    return root

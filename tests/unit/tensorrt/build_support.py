"""Checkpoints and recipes for the tests of the build."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.store.store import Store
from pipeline.targets.tensorrt.build.script import build_script
from tests.doubles.trtllm_build import checkpoint as upstream

ALGOS = {
    "float16": None,
    "bfloat16": None,
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int4_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
    "fp8": "FP8",
}


def recipe(quantization: str = "float16", **changes: Any) -> Recipe:
    """A recipe for the tensorrt target.

    Args:
        quantization: ``quantize.format``.
        changes: Keys of ``compile``, and ``kv_cache``, ``plugins`` and ``options``.
    """
    kv_cache, plugins = changes.pop("kv_cache", None), changes.pop("plugins", {})
    options = changes.pop("options", {})
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"source": "anywhere"},
            "quantize": {
                "format": quantization,
                "kv_cache": kv_cache,
                "calibration": {"text": "words.txt"},
            },
            "compile": {
                "target": "tensorrt",
                "max_batch_size": 8,
                "max_input_len": 512,
                "max_seq_len": 1024,
                "max_num_tokens": 2048,
                "tensorrt": {"plugin_config": plugins, **options},
                **changes,
            },
        }
    )


def checkpoint_config(
    quantization: str, *, kv_cache: str | None = None, tp: int = 1, pp: int = 1, **changes: Any
) -> dict[str, Any]:
    """``config.json`` of a four-layer model."""
    section: dict[str, Any] = {
        "quant_algo": ALGOS[quantization],
        "kv_cache_quant_algo": kv_cache and kv_cache.upper(),
        "exclude_modules": ["lm_head"],
    }
    if quantization.endswith("awq"):
        section |= {"group_size": 128, "has_zero_point": False, "pre_quant_scale": True}
    return {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16" if quantization == "bfloat16" else "float16",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_size": 64,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 10000.0,
        "use_parallel_embedding": True,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": section,
        **changes,
    }


def write_headers(directory: Path, config: dict[str, Any]) -> Path:
    """A checkpoint whose rank files are headers only: the build double reads nothing else."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    loaded = upstream.read_config(directory, lambda _level, _text: None)
    for rank in range(loaded["mapping"]["world_size"]):
        shapes = upstream.parameters(loaded, rank)
        write_header(directory / f"rank{rank}.safetensors", shapes)
    return directory


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors header; two-dimensional tensors of layers are INT8, as AWQ needs them."""
    header = {
        name: {
            "dtype": "I8" if len(shape) == 2 and ".layers." in name else "F16",
            "shape": shape,
            "data_offsets": [0, 0],
        }
        for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def publish_checkpoint(root: Path, config: dict[str, Any]) -> Artifact:
    """A checkpoint of headers in a store, as the quantize stage leaves one."""
    store = Store(root)
    with store.workspace("quantize", "key") as workspace:
        workspace.rmdir()
        write_headers(workspace, config)
        return store.publish(
            *(workspace,), stage="quantize", key="key", material={}, inputs={}, facts={}, seconds=0
        )


def carry(
    checkpoint: Artifact, recipe: Recipe, folder: Path, engine: str = "engine", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the recipe's build script on a copy of the checkpoint, in a folder of its own.

    The machine is the one of :func:`tests.doubles.trtllm_build.machine.pretend`.
    """
    folder.mkdir(exist_ok=True)
    script, copy = folder / "build engine.sh", folder / "the checkpoint"
    script.write_text(build_script(checkpoint, recipe), encoding="utf-8")
    if not copy.exists():
        shutil.copytree(checkpoint.path, copy)
    return subprocess.run(
        ["/bin/bash", script.name, copy.name, engine],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

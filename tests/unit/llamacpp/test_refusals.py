"""What is refused for llama.cpp and Ollama, by its message: their column of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.targets import get_target
from tests.conftest import DEMO_MODEL


def check(
    folder: Path, target: str, name: str, kind: str = "stored", config: Any = None, **keys: Any
) -> None:
    """Pre-flight of a recipe on the demo's config.json."""
    text = folder / "text.txt"
    text.write_text("once\n")
    content = json.loads((DEMO_MODEL / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(content))
    compiled = {"target": target, "max_seq_len": 128, "max_input_len": 64, "max_num_tokens": 64}
    wanted = Recipe.model_validate(
        {
            "name": "test",
            "model": {"source": str(folder)},
            "quantize": {"format": name, "calibration": {"text": str(text)}, **keys},
            "compile": {**compiled, "llamacpp": {"type": kind}},
        }
    )
    get_target(target).check(wanted, ModelFacts.from_directory(folder))


TARGETS = pytest.mark.parametrize("target", ["llamacpp", "ollama"])


@TARGETS
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("float16", "stored"),
        ("bfloat16", "stored"),
        ("int4_awq", "stored"),
        ("int4_gptq", "stored"),
        *(("float16", kind) for kind in ("f32", "f16", "bf16", "q8_0", "q4_k_m", "q6_k", "q4_0")),
    ],
)
def test_what_has_a_place_is_taken(tmp_path: Path, target: str, name: str, kind: str) -> None:
    check(tmp_path, target, name, kind)


@TARGETS
@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("int8_sq", "stored", r"int8_sq has no place.*no scale of activations.*q8_0, which has 8"),
        ("fp8", "stored", r"fp8 has no place.*no type of fp8 weights with fp8 activations"),
        ("w4a8_awq", "stored", r"w4a8_awq has no place.*int4 weights with fp8 activations"),
        ("int4_awq", "q4_k_m", r"int4_awq is not converted to q4_k_m.*rounded once.*stored"),
        ("int8_sq", "q8_0", r"int8_sq is not converted to q8_0.*rounded again"),
    ],
)
def test_what_has_none_is_refused(
    tmp_path: Path, target: str, name: str, kind: str, said: str
) -> None:
    with pytest.raises(UnsupportedError, match=said):
        check(tmp_path, target, name, kind)


@TARGETS
def test_a_calibrated_kv_cache_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(UnsupportedError, match=r"int8 KV cache .* none of llama\.cpp's"):
        check(tmp_path, target, "int8_sq", kv_cache="int8")


def test_models_that_would_be_run_wrongly_are_refused(tmp_path: Path) -> None:
    mistral = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 100,
    }
    with pytest.raises(UnsupportedError, match=r"sliding window of 100 tokens.*at most 100"):
        check(tmp_path, "llamacpp", "float16", config=mistral)
    with pytest.raises(UnsupportedError, match=r"longer than the model's 100 positions"):
        check(tmp_path, "llamacpp", "float16", config={"max_position_embeddings": 100})
    with pytest.raises(UnsupportedError, match=r"200 input features.*no multiple of 32"):
        check(tmp_path, "llamacpp", "float16", "q8_0", config={"intermediate_size": 200})
    check(tmp_path, "llamacpp", "float16", "f16", config={"intermediate_size": 200})

"""Which models the table of architectures takes, and what it refuses by name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.errors import UnsupportedError
from pipeline.models.architectures import ARCHITECTURES
from pipeline.models.config_keys import unread_keys
from pipeline.models.facts import ModelFacts

PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data/published-configs.json").read_text()
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 256,
}
TABLE = "architectures.py"
# How calls of tools are written is called as in vLLM and llama.cpp, after who began it; and so are
# llama.cpp's tokenizers.
CALLED_ALIKE = {
    Path("gateway", "tools", "forms.py"),
    Path("targets", "llamacpp", "vocabulary.py"),
}
# MODEL_MAP of tensorrt_llm/models/__init__.py, what it has of the supported architectures.
MODEL_MAP = {
    "LlamaForCausalLM": "LLaMAForCausalLM",
    "MistralForCausalLM": "LLaMAForCausalLM",
    "Qwen2ForCausalLM": "QWenForCausalLM",
    "Qwen3ForCausalLM": "QWenForCausalLM",
}


def _facts(architecture: str, **keys: Any) -> ModelFacts:
    return ModelFacts.from_config({**SIZES, "architectures": [architecture], **keys}, "config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_taken_and_their_strays_listed(name: str) -> None:
    published = PUBLISHED[name]
    config = published["config"]
    facts = ModelFacts.from_config(config, name)
    assert facts.architecture == config["architectures"][0]
    assert facts.hidden_size == config["hidden_size"]
    assert unread_keys(config) == published["unread"]


def test_the_published_files_are_of_every_architecture() -> None:
    names = {entry["config"]["architectures"][0] for entry in PUBLISHED.values()}
    assert names == ARCHITECTURES.keys()
    assert all(entry["source"] for entry in PUBLISHED.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("attention_chunk_size", 128, "128"),
        ("num_kv_shared_layers", 2, "2"),
        ("is_encoder_decoder", True, "true"),
        ("pruned_heads", {"0": [1]}, r"\{'0': \[1\]\}"),
        ("return_dict", False, "false"),
        ("return_dict", 1, "1"),
        ("partial_rotary_factor", 0.5, "0.5"),
    ],
)
def test_a_key_that_decides_the_arithmetic_is_refused_by_name(
    name: str, key: str, value: object, shown: str
) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"^config\.json: {key} (is )?{shown}[ .]"
    ) as caught:
        _facts(name, **{key: value})
    assert caught.value.exit_code == 3
    assert caught.value.why


def test_layer_types_are_understood_where_windows_are_per_layer() -> None:
    full = {"layer_types": ["full_attention"] * 4}
    assert _facts("Qwen2ForCausalLM", **full).sliding_window is None
    for name in ("LlamaForCausalLM", "MistralForCausalLM"):
        with pytest.raises(UnsupportedError, match=r"layer_types is \[.*set layer_types to null"):
            _facts(name, **full)
        assert _facts(name, layer_types=None).num_hidden_layers == 4


def test_a_key_may_have_the_value_that_changes_nothing() -> None:
    default = {"is_encoder_decoder": False, "pruned_heads": {}, "return_dict": True}
    for name in ARCHITECTURES:
        assert _facts(name, **default) == _facts(name)


def test_the_class_that_transformers_loads_is_the_one_of_the_architecture() -> None:
    for architecture in ARCHITECTURES.values():
        assert _facts(architecture.name, model_type=architecture.model_type)
    with pytest.raises(UnsupportedError, match="model_type is 'mixtral' beside MistralForCausalLM"):
        _facts("MistralForCausalLM", model_type="mixtral")


def test_a_row_may_fix_a_key_that_it_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = ARCHITECTURES["LlamaForCausalLM"]
    reads = {**llama.reads, "residual_multiplier": 1.0}
    name = llama.name
    monkeypatch.setitem(ARCHITECTURES, name, replace(llama, reads=reads))
    with pytest.raises(UnsupportedError, match=r"residual_multiplier is 1\.0 by default"):
        _facts(name)
    row = replace(llama, reads=reads, fixed={"residual_multiplier": (1.0,)})
    monkeypatch.setitem(ARCHITECTURES, name, row)
    assert _facts(name) == _facts(name, residual_multiplier=1)
    with pytest.raises(UnsupportedError, match=r"residual_multiplier is 0\.22.* where it is 1\.0"):
        _facts(name, residual_multiplier=0.22)


def test_the_classes_of_tensorrt_llm_are_upstreams() -> None:
    known = {name: row.tensorrt_llm.model_class for name, row in ARCHITECTURES.items()}
    assert {name: known_class for name, known_class in known.items() if known_class} == MODEL_MAP


def test_keys_of_other_tools_are_no_reason_to_refuse_a_model() -> None:
    strays = {"unsloth_version": "2025.1", "use_qk_norm": True, "num_local_experts": 8}
    for name in ARCHITECTURES:
        # transformers does not read them for these classes, so they decide nothing.
        assert _facts(name, **strays) == _facts(name)
        assert unread_keys({"architectures": [name], **strays}) == sorted(strays)


def test_no_module_but_the_table_knows_an_architecture_by_name() -> None:
    families = {row.model_type for row in ARCHITECTURES.values()}
    names = ARCHITECTURES.keys() | families | {"qwen"}
    root = Path(pipeline.__file__).parent
    known = [
        f"{path.relative_to(root)}: {text!r}"
        for path in sorted(root.rglob("*.py"))
        if path.name != TABLE and path.relative_to(root) not in CALLED_ALIKE
        for text in _literals(ast.parse(path.read_text(encoding="utf-8")))
        if text.lower().removesuffix("forcausallm").removesuffix("config") in names
        or any(name in text for name in ARCHITECTURES)
    ]
    assert known == []


def _literals(tree: ast.AST) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        literal = isinstance(node, ast.Constant) and id(node) not in docstrings
        if literal and isinstance(node.value, str):
            yield node.value


def test_a_model_is_checked_without_transformers() -> None:
    code = (
        "import sys, pipeline.preflight.model_checks\n"
        "print(sorted({'transformers', 'torch', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

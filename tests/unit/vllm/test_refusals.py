"""What is refused for vLLM, by its message: the column of the table of formats and targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.targets import get_target
from tests.conftest import DEMO_MODEL
from tests.unit.vllm.support import recipe


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text((DEMO_MODEL / "config.json").read_text())
    return tmp_path


def check(source: Path, name: str = "int4_awq", **changes: Any) -> None:
    wanted = recipe(source, name, **changes)
    get_target("vllm").check(wanted, ModelFacts.from_directory(source))


@pytest.mark.parametrize(
    "name", ["float16", "bfloat16", "int4_awq", "int8_sq", "int4_gptq", "fp8", "int8_wo", "float32"]
)
def test_what_is_written_is_taken(source: Path, name: str) -> None:
    check(source, name)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "w4a8_awq",
            {},
            r"w4a8_awq is not written for vLLM.*inputs in fp8.*Set quantize\.format to",
        ),
        (
            "nf4",
            {},
            r"nf4 is not written for vLLM.*with weights in nf4.*int4_awq, int4_gptq",
        ),
        (
            "int4_awq",
            {"quantize": {"portable": False}},
            r"int4_awq has pre-quant scales.*Set quantize\.portable to true",
        ),
        (
            "int8_sq",
            {"quantize": {"portable": False}},
            r"int8_sq has pre-quant scales.*rounded.*Set quantize\.portable to true",
        ),
        (
            "int8_sq",
            {"quantize": {"kv_cache": "int8"}},
            r"an int8 KV cache.*Set quantize\.kv_cache to null",
        ),
        ("fp8", {"quantize": {"kv_cache": "fp8"}}, r"an fp8 KV cache.*none is INT8"),
        (
            "int8_sq",
            {"vllm": {"layout": "gptq"}},
            r"int8_sq is not stored in the layout gptq.*stored as compressed-tensors",
        ),
        (
            "int4_awq",
            {"vllm": {"layout": "modelopt"}},
            r"int4_awq is not stored in the layout modelopt.*compressed-tensors or gptq",
        ),
        ("float16", {"vllm": {"layout": "gptq"}}, r"Nothing of it is quantized"),
        (
            "float16",
            {"compile": {"max_seq_len": 100_000}},
            r"max_seq_len 100000 is longer than the model's \d+ positions",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused(
    source: Path, name: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedError, match=said):
        check(source, name, **changes)


def test_a_longer_model_may_have_longer_texts(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200_000}))
    check(source, compile={"max_seq_len": 100_000})

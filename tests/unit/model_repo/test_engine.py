"""With which properties the engine is opened."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_repo.tensorrt_llm import exactness, model, opening
from model_repo.tensorrt_llm.engine import Engine
from model_repo.tensorrt_llm.settings import EngineSettings
from pipeline.triton.guardian import children
from tests.unit.model_repo.fake_triton import model_args

SETTINGS = EngineSettings(
    engine_dir=Path("engine"),
    vocab_size=8,
    max_batch_size=1,
    max_input_len=8,
    max_seq_len=16,
    num_kv_blocks=1,
    max_num_batched_tokens=16,
    properties={"KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"},
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The properties of every pipeline that is opened."""
    found: list[dict[str, str]] = []

    def pipeline(*_places: Any, **properties: str) -> None:
        found.append(properties)

    genai = SimpleNamespace(
        SchedulerConfig=SimpleNamespace,
        Tokenizer=lambda _folder: None,
        ContinuousBatchingPipeline=pipeline,
    )
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "openvino_genai", genai)
    return found


@pytest.mark.parametrize("failing", ["Engine", "warm_up"])
def test_an_engine_that_does_not_open_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    settings = replace(
        SETTINGS, guided_decoding=True, tokenizer=tmp_path / "tokenizer.json", end_ids=(2,)
    )
    seen: list[list[int]] = []

    def fail(*_: Any) -> None:
        seen.append(children(os.getpid()))
        raise RuntimeError("the engine is broken")

    broken = SimpleNamespace(warm_up=fail)
    monkeypatch.setattr(model, "read_settings", lambda *_, **__: settings)
    monkeypatch.setattr(opening, "Engine", fail if failing == "Engine" else lambda _: broken)
    before, interval = children(os.getpid()), sys.getswitchinterval()
    try:
        with pytest.raises(RuntimeError, match="the engine is broken"):
            model.TritonPythonModel().initialize(model_args(tmp_path, {}))
    finally:
        sys.setswitchinterval(interval)
    assert len(seen[0]) == len(before) + 1
    assert children(os.getpid()) == before


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_int8_is_multiplied_in_float32_where_it_would_saturate(
    opened: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, int8: bool, exact: bool
) -> None:
    monkeypatch.setattr(exactness, "multiplies_int8_exactly", lambda _openvino: exact)
    engine = Engine(replace(SETTINGS, int8_products=int8))
    assert engine.saturates == (int8 and not exact)
    expected = {
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
        "CPU_RUNTIME_CACHE_CAPACITY": "64",
    }
    if int8 and not exact:
        expected |= {"LP_TRANSFORMS_MODE": "NO", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    assert opened == [expected]


def test_an_engine_may_set_how_much_the_plugin_keeps(opened: list[dict[str, str]]) -> None:
    wanted = {"CPU_RUNTIME_CACHE_CAPACITY": "5000"}
    Engine(replace(SETTINGS, properties=wanted))
    assert opened == [wanted]

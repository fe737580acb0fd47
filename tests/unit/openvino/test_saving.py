"""The engine's files, against what OpenVINO itself saves of the graph with all values in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from pipeline.checkpoint import open_checkpoint
from pipeline.errors import CompileError
from pipeline.models.architectures import ARCHITECTURES
from pipeline.targets.openvino import saving
from pipeline.targets.openvino.constants import Constants, LeftOut
from pipeline.targets.openvino.graph import build_model
from pipeline.targets.openvino.saving import save
from tests.unit.checkpoint.drawn import drawn_checkpoint


def architecture(name: str) -> dict[str, Any]:
    upstream = ARCHITECTURES[name].tensorrt_llm
    return {"architecture": name, **upstream.switches, **upstream.constants}


CASES: dict[str, dict[str, Any]] = {
    "float16": {"algo": "NO_QUANT"},
    "bfloat16": {"algo": "NO_QUANT", "dtype": "bfloat16"},
    "float32 and an odd vocabulary over ranks": {"algo": "NO_QUANT", "dtype": "float32", "tp": 2},
    "biases": {"algo": "NO_QUANT", **architecture("Qwen2ForCausalLM"), "attn_bias": True},
    "norms of heads": {"algo": "INT8_WO", **architecture("Qwen3ForCausalLM"), "attn_bias": False},
    "INT4": {"algo": "W4A16_AWQ", "dtype": "bfloat16"},
    "INT4 over ranks": {"algo": "W4A16_AWQ", "tp": 2, "pp": 2},
    "INT4 with zero points": {"algo": "W4A16_AWQ", "quantization": {"has_zero_point": True}},
    "INT4 out of order": {"algo": "W4A16_AWQ", "quantization": {"input_order": True}},
    "INT8": {"algo": "W8A8_SQ_PER_CHANNEL", "pp": 2},
    "INT8 weights": {"algo": "INT8_WO"},
    "NF4": {"algo": "NF4", "tp": 2},
}


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_bytes_are_openvinos_own(tmp_path: Path, case: dict[str, Any]) -> None:
    opened = open_checkpoint(drawn_checkpoint(tmp_path / "checkpoint", **case))
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    for folder in (whole, streamed):
        folder.mkdir()
    model = build_model(opened.weights(), opened.facts)
    ov.save_model(model, whole / "engine.xml", compress_to_fp16=False)
    left_out, steps = LeftOut(), []
    model = build_model(opened.weights(), opened.facts, constants=left_out)
    save(
        model,
        streamed / "engine.xml",
        left_out,
        release=opened.release,
        written=lambda: steps.append(1),
    )
    assert written(streamed) == written(whole)
    assert len(steps) == len(left_out) > 8


def small(constants: Constants, *arrays: np.ndarray) -> ov.Model:
    x = op.parameter(ov.PartialShape([-1]), ov.Type.f32, name="x")
    results = [op.result(op.relu(x))]
    for number, array in enumerate(arrays):
        halves = np.array_split(array.reshape(-1), 2)
        node = constants.matrix(
            ov.Type(array.dtype), array.shape, lambda halves=halves: halves, f"weight {number}"
        )
        results.append(op.result(node))
    return ov.Model(results, [x], "small")


def test_equal_constants_are_written_once_and_those_that_begin_alike_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that constants have several pieces, and differ in the last one.
    monkeypatch.setattr(saving, "_PIECE", 512)
    first = np.arange(1000, dtype=np.float32)
    last = first.copy()
    last[-1] = -1
    arrays = (first, last, first.reshape(10, 100), first[:500], np.zeros(8, np.float32), last)
    left_out = LeftOut()
    save(small(left_out, *arrays), tmp_path / "m.xml", left_out)
    found = (tmp_path / "m.bin").read_bytes()
    assert len(found) == sum(array.nbytes for array in (first, last, first[:500], arrays[4]))
    (tmp_path / "whole").mkdir()
    ov.save_model(small(Constants(), *arrays), tmp_path / "whole/m.xml", compress_to_fp16=False)
    assert found == (tmp_path / "whole/m.bin").read_bytes()
    places = [
        re.findall(r'offset="\d+" size="\d+"', (folder / "m.xml").read_text())
        for folder in (tmp_path, tmp_path / "whole")
    ]
    assert places[0] == places[1]
    assert len(places[0]) == len(arrays)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'name="weight 1"', b'name="weight 7"', "It has a constant weight 7"),
        (b'type="Const"', b'type="Constant"', "It lacks the constant"),
        (b'size="16"', b'size="12"', "A constant of 16 bytes has 12"),
    ],
)
def test_a_graph_in_another_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes, why: str
) -> None:
    written_by_openvino = saving._graph
    monkeypatch.setattr(
        saving, "_graph", lambda *given: written_by_openvino(*given).replace(old, new)
    )
    left_out = LeftOut()
    model = small(left_out, np.ones(4, np.float32), np.zeros(4, np.float32))
    with pytest.raises(CompileError, match=rf"not understood.*{why}.*constraints\.txt"):
        save(model, tmp_path / "m.xml", left_out)


def test_what_is_left_out_takes_no_memory() -> None:
    def anonymous() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) << 10

    if "RssAnon:" not in Path("/proc/self/status").read_text():
        pytest.skip("this system does not say what is in memory")
    before, left_out = anonymous(), LeftOut()
    nodes = [left_out.matrix(ov.Type.f16, (1 << 14, 1 << 14), list) for _ in range(4)]
    assert not any(node.data[:: 1 << 10].any() for node in nodes)
    assert anonymous() - before < 1 << 26

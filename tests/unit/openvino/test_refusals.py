"""What the CPU target refuses before anything is done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.targets import get_target
from tests.unit.openvino.test_rope import facts

MACHINE_MEMORY = "pipeline.targets.openvino.memory.machine_memory"

RECIPE = """\
schema: 1
name: test
model: {source: somewhere}
quantize:
  format: int4_awq
  calibration: {text: calibration.txt}
compile:
  target: openvino
  max_seq_len: 2048
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return load_recipe(path, overrides)


def check(settings: Recipe, model: ModelFacts | None = None) -> None:
    get_target("openvino").check(settings, model or facts())


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8_sq", "int4_awq"])
def test_formats_that_run(tmp_path: Path, name: str) -> None:
    check(recipe(tmp_path, f"quantize.format={name}"))


@pytest.mark.parametrize("name", ["fp8", "w4a8_awq"])
def test_float8_formats_are_refused_with_the_line_and_the_remedy(tmp_path: Path, name: str) -> None:
    settings = recipe(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("int4_awq", name))
    settings = load_recipe(path)
    with pytest.raises(UnsupportedError, match=f"{name} is not executed by the CPU") as caught:
        check(settings)
    assert caught.value.exit_code == 3
    assert caught.value.where == f"{path}:5 (quantize.format)"
    assert "compile.target to tensorrt" in str(caught.value)


def test_a_calibrated_kv_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="an int8 KV cache with calibrated scales"):
        check(recipe(tmp_path, "quantize.kv_cache=int8"))


def test_a_sequence_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="5000 is longer than the model's 4096 positions"):
        check(recipe(tmp_path, "compile.max_seq_len=5000"))
    check(
        recipe(tmp_path, "compile.max_seq_len=5000"),
        facts(rope_scaling={"rope_type": "linear", "factor": 2.0}),
    )


def test_a_sliding_window_must_hold_the_whole_sequence(tmp_path: Path) -> None:
    mistral: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 4}
    with pytest.raises(UnsupportedError, match=r"sliding window of 1024.*at most 1024"):
        check(recipe(tmp_path), facts(**mistral, sliding_window=1024))
    check(recipe(tmp_path), facts(**mistral, sliding_window=2048))


@pytest.mark.parametrize(("arithmetic", "cache"), [("f32", "bf16"), ("bf16", "f32")])
def test_kv_precisions_without_a_kernel_are_refused(
    tmp_path: Path, arithmetic: str, cache: str
) -> None:
    settings = recipe(
        tmp_path,
        f"compile.openvino.inference_precision={arithmetic}",
        f"compile.openvino.kv_cache_precision={cache}",
    )
    with pytest.raises(UnsupportedError, match=f"{cache} does not go with .* {arithmetic}"):
        check(settings)


def test_a_cache_that_the_machine_cannot_hold_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = 327_680 + 102_400
    per_token = 2 * 4 * 64 * 4
    needed = weights + 32 * 2048 * per_token
    monkeypatch.setattr(MACHINE_MEMORY, lambda: needed)
    check(recipe(tmp_path))
    monkeypatch.setattr(MACHINE_MEMORY, lambda: needed - 1)
    with pytest.raises(UnsupportedError, match=f"the engine needs {needed:,} bytes") as caught:
        check(recipe(tmp_path))
    text = str(caught.value)
    assert f"this machine has {needed - 1:,}" in text
    assert "A KV cache of 65,536 tokens takes 134,217,728 bytes (2,048 per token in f32)" in text
    assert "Set serve.max_tokens_in_paged_kv_cache to at most 65504, or lower" in text
    assert "compile.max_batch_size" in text
    # The remedies work.
    check(recipe(tmp_path, "serve.max_tokens_in_paged_kv_cache=65504"))
    check(recipe(tmp_path, "compile.max_batch_size=31"))
    check(recipe(tmp_path, "compile.openvino.kv_cache_precision=f16"))


@pytest.mark.parametrize(
    ("memory", "remedy"),
    [
        (10**6, "Lower compile.max_seq_len, of which one sequence must fit; compile.openvino.kv"),
        (400_000, "Use a machine with more memory, or a smaller model."),
    ],
)
def test_a_machine_without_room_for_one_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, remedy: str
) -> None:
    monkeypatch.setattr(MACHINE_MEMORY, lambda: memory)
    with pytest.raises(UnsupportedError, match="this machine has") as caught:
        check(recipe(tmp_path, "serve.max_tokens_in_paged_kv_cache=4096"))
    assert remedy in str(caught.value)
    assert "serve.max_tokens_in_paged_kv_cache" in str(caught.value.where)


def test_parallelism_is_no_obstacle_because_ranks_are_merged(tmp_path: Path) -> None:
    check(recipe(tmp_path, "compile.tensor_parallel=2", "compile.pipeline_parallel=2"))


def test_the_plan_says_what_the_engine_takes_of_this_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MACHINE_MEMORY, lambda: 2**30)
    asked = recipe(tmp_path, "compile.max_seq_len=2040", "serve.max_tokens_in_paged_kv_cache=10000")
    explanation = get_target("openvino").explain(asked, facts())
    assert explanation is not None
    # As above by hand: layers and heads of the model, float32, and blocks of 32 tokens.
    per_token, tokens = 2 * 4 * 64 * 4, 9984
    assert explanation.values["memory"] == {
        "weights": 327_680 + 102_400,
        "kv_bytes_per_token": per_token,
        "kv_bytes_per_sequence": 2048 * per_token,
        "kv_tokens": tokens,
        "kv_cache": tokens * per_token,
        "sequences": 4,
        "machine": 2**30,
    }
    shown = "\n".join(explanation.lines)
    assert re.search(r"weights +0\.41 MiB  at least\n", shown)
    assert re.search(r"KV cache +19\.50 MiB  9984 tokens of 2\.0 KiB", shown)
    assert re.search(r"machine +1\.00 GiB\n", shown)
    assert re.search(r"left +0\.98 GiB\n", shown)
    assert re.search(r"sequences +4 +of max_seq_len together \(max_batch_size 32\)", shown)


def test_the_check_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.targets import get_target; t = get_target('openvino'); "
        "t.tools(); import pipeline.stages.compile, pipeline.stages.evaluate; "
        "heavy = {'openvino', 'torch', 'numpy', 'transformers'} & set(sys.modules); "
        "sys.exit(' '.join(heavy) or None)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_cache_key_covers_tools_and_graph() -> None:
    assert {"openvino", "openvino-genai", "numpy", "graph"} <= set(get_target("openvino").tools())

"""Reading an engine directory back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CompileError
from pipeline.progress import Silent
from pipeline.targets.tensorrt.build.engine import (
    check_ranks,
    compare,
    read_config,
    read_engine_manifest,
    refuse_changed_service,
    write_manifest,
)
from pipeline.targets.tensorrt.build.log import BuildLog

EFFECTIVE: dict[str, Any] = {
    "max_batch_size": 8,
    "kv_cache_type": "PAGED",
    "opt_num_tokens": 8,
    "plugin_config": {"dtype": "float16", "gemm_plugin": "auto", "context_fmha": True},
}


@pytest.mark.parametrize(
    "predicted",
    [
        {"max_batch_size": 8},
        {"kv_cache_type": "paged"},
        {"plugin_config": {"gemm_plugin": "auto"}},
        # pydantic may have resolved it while it was written.
        {"plugin_config": {"gemm_plugin": "float16"}},
    ],
)
def test_the_same_in_other_words(predicted: dict[str, Any]) -> None:
    assert compare(EFFECTIVE, predicted) == []


@pytest.mark.parametrize(
    ("predicted", "text", "serious"),
    [
        ({"max_batch_size": 16}, "max_batch_size is 8, not 16", True),
        ({"opt_num_tokens": 4}, "opt_num_tokens is 8, not 4", False),
        ({"plugin_config": {"gemm_plugin": None}}, 'gemm_plugin is "auto", not null', False),
        ({"plugin_config": {"context_fmha": False}}, "context_fmha is true, not false", True),
        ({"gather_context_logits": True}, "gather_context_logits is null, not true", True),
    ],
)
def test_differences(predicted: dict[str, Any], text: str, serious: bool, tmp_path: Path) -> None:
    (difference,) = compare(EFFECTIVE, predicted)
    assert text in str(difference)
    assert difference.changes_service == serious
    if serious:
        with pytest.raises(CompileError, match="not the one that was asked for"):
            refuse_changed_service([difference], tmp_path)
    else:
        refuse_changed_service([difference], tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"version": "1.2.1"}', '{"version": 1}'])
def test_a_directory_that_is_no_engine(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CompileError, match=r"no readable config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"rank0.engine": "x"}, r"rank1\.engine is missing"),
        ({"rank0.engine": "x", "rank1.engine": ""}, r"rank1\.engine is empty"),
        ({f"rank{rank}.engine": "x" for rank in range(3)}, r"rank2\.engine belongs to no rank"),
    ],
)
def test_ranks_that_do_not_add_up(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CompileError, match=message):
        check_ranks(tmp_path, 2)


def test_the_manifest_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"gpu": {"name": "NVIDIA L4", "sm": 89}})
    assert read_engine_manifest(tmp_path)["gpu"] == {"name": "NVIDIA L4", "sm": 89}
    (tmp_path / "engine.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(CompileError, match=r"no readable engine\.json"):
        read_engine_manifest(tmp_path)


class Counter(Silent):
    """Counts progress and keeps notes."""

    done = 0.0
    notes: tuple[str, ...] = ()

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount

    def note(self, message: str) -> None:
        self.notes += (message,)


def test_progress_of_two_ranks_and_their_warnings() -> None:
    counter = Counter()
    log = BuildLog(counter, counter, ranks=2)
    warning = "Paged Context FMHA is disabled because it doesn't work with int8 kv cache currently."
    one_rank = [
        f"[10:00] [TRT-LLM] [W] {warning}",
        "[10:00] [TRT-LLM] [I] Set PluginConfig.nccl_plugin to float16.",
        "[10:00] [TRT-LLM] [I] Total time of constructing network from module object 2.79 seconds",
        "[10:00] [TRT-LLM] [I] Build TensorRT engine Unnamed Network 0",
        "[10:00] [TRT] [W] Unused Input: position_ids",
        "[10:00] [TRT] [I] Engine generation completed in 15.4544 seconds.",
        "[10:00] [TRT-LLM] [I] Total time of building Unnamed Network 0: 00:00:22",
        "[10:00] [TRT-LLM] [I] Serializing engine to /engine/rank0.engine...",
        "[10:00] [TRT-LLM] [I] Engine serialized. Total time: 00:00:19",
    ]
    for line in one_rank:
        log(line)
    assert counter.done == pytest.approx(1.0)
    for line in one_rank * 2:
        log(line)
    assert counter.done == pytest.approx(2.0)
    assert log.warnings == [warning]
    assert counter.notes == (f"trtllm-build: {warning}",)


def logged(*lines: str) -> tuple[tuple[str, ...], list[str]]:
    """The notes and the warnings of a build that says these lines."""
    counter = Counter()
    log = BuildLog(counter, counter, ranks=1)
    for line in lines:
        log(line)
    return counter.notes, log.warnings


def test_what_every_build_says_is_not_passed_on() -> None:
    """The line is of a build of a user's, NVIDIA/TensorRT-LLM 1.0; paged_state is Mamba's."""
    prefix = "[08/27/2025-08:22:19] [TRT-LLM] [W]"
    assert logged(f"{prefix} Overriding paged_state to False") == ((), [])
    telling = "Overriding reduce_fusion to False"
    assert logged(f"{prefix} {telling}") == ((f"trtllm-build: {telling}",), [telling])


def test_activation_scales_that_were_merged_are_explained_once() -> None:
    """Upstream prints Python's form of the set of names."""
    scales = {f"transformer.layers.{n}.mlp.fc.activation_scaling_factor" for n in range(3)}
    line = f"[10:00] [TRT-LLM] [W] Provided but not required tensors: {scales}"
    notes, warnings = logged(line, line)
    assert warnings == []
    (note,) = notes
    assert "3 activation scales not required, as it should" in note
    # Any other tensor is lost, and that changes what the engine computes.
    lost = scales | {"transformer.layers.0.mlp.fc.prequant_scaling_factor"}
    line = f"[10:00] [TRT-LLM] [W] Provided but not required tensors: {lost}"
    _, warnings = logged(line)
    assert "prequant_scaling_factor" in warnings[0]


def test_a_weight_without_a_kernel_is_passed_on_once_for_its_shape() -> None:
    """Lines of NVIDIA/TensorRT-LLM#9688, where the engine then failed at its first token."""
    text = "Have not found any valid GEMM config for shape (m={}, n={}, k={}). Will try to use "
    lines = [
        f"[TensorRT-LLM][WARNING] {text.format(m, n, k)}default or fail at runtime"
        for n, k in ((4736, 3584), (896, 18944))
        for m in (512, 1024, 2048)
    ]
    notes, warnings = logged(*lines)
    assert len(notes) == len(warnings) == 2
    assert "shape (n=4736, k=3584); the engine may fail at its first token" in warnings[0]

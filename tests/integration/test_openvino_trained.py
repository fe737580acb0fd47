"""Trained models through the real quantize and compile stages: numbers, and text of the batching
pipeline that Triton serves."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.reference.source import load_source
from pipeline.source.lines import read_texts
from pipeline.source.tokens import load_tokenizer
from tests.conftest import DEMO_MODEL, SHARED_MODELS
from tests.integration.openvino_support import (
    compile_engine,
    greedy,
    logits,
    open_engine,
    relative_rms,
    top1_agreement,
)
from tests.integration.quantize_support import run_stage

MODELS = ("demo", "stories")
FORMATS: dict[str, dict[str, Any]] = {
    "float16": {"format": "float16"},
    "int4_awq g128": {"format": "int4_awq", "group_size": 128},
    "int4_awq g64": {"format": "int4_awq", "group_size": 64},
    "int8_sq": {"format": "int8_sq"},
}
# One batch of 8 texts calibrates in seconds; what is tested here is not the quality.
CALIBRATION = {"samples": 8, "sequence_length": 128, "batch_size": 8}
WINDOWS, LENGTH = 8, 160
NEW_TOKENS = 32


def texts_of(name: str) -> list[str]:
    """Held-out text of a model."""
    if name == "demo":
        return read_texts(DEMO_MODEL.parent / "data" / "heldout.jsonl")
    story = (SHARED_MODELS.parent / "data" / "tinystories_valid_30k.txt").read_text()
    return [story[start : start + 900] for start in range(0, 27000, 900)]


@pytest.fixture(scope="module")
def source() -> Callable[[str], Path]:
    """The directory of a model; skips where it is not."""

    def find(name: str) -> Path:
        path = DEMO_MODEL if name == "demo" else SHARED_MODELS / "stories260K-h128"
        if not path.is_dir():
            pytest.skip(f"{path.name} is not here")
        return path

    return find


@pytest.fixture(scope="module")
def checkpoint(
    source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Checkpoints, written once each by the quantize stage."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def make(name: str, format_name: str) -> Path:
        directory = source(name)
        text = folder / f"{name}.jsonl"
        text.write_text("\n".join(json.dumps({"text": text}) for text in texts_of(name)[:8]))
        settings = Recipe.model_validate(
            {
                "name": "test",
                "model": {"source": str(directory)},
                "quantize": {
                    "device": "cpu",
                    "calibration": {"text": str(text), **CALIBRATION},
                    **FORMATS[format_name],
                },
            }
        )
        output = folder / f"{name} {format_name}"
        run_stage(settings, directory, output)
        return output

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def windows(name: str, directory: Path) -> np.ndarray:
    """int64 [WINDOWS, LENGTH] of held-out text that calibration has not seen."""
    tokenizer = load_tokenizer(directory)
    ids = [token for text in texts_of(name)[8:] for token in tokenizer.encode(text)]
    return np.array(ids[: WINDOWS * LENGTH]).reshape(WINDOWS, LENGTH)


@torch.inference_mode()
def reference_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    found: np.ndarray = model(torch.tensor(ids)).logits.numpy()
    return found


@torch.inference_mode()
def reference_text(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations by transformers' own generate()."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(whole[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_on_held_out_text(
    name: str,
    format_name: str,
    source: Callable[[str], Path],
    checkpoint: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    directory = checkpoint(name, format_name)
    ids = windows(name, source(name))
    expected = reference_logits(load_reference(directory), ids)
    engine = compile_engine(directory, tmp_path / "engine")
    found = logits(open_engine(engine), ids, prefill=LENGTH - 16)
    error, agreement = relative_rms(found, expected), top1_agreement(found, expected)
    print(f"{name} {format_name}: rel-rms {error:.1e}, top-1 {agreement:.4f}")
    if format_name == "int8_sq":
        # A tie of INT8 activations rounds to either side, and one flip moves others.
        assert agreement >= 0.96
    else:
        assert error <= 1e-4
        assert agreement == 1.0


@pytest.mark.parametrize("format_name", ["float16", "int4_awq g128"])
@pytest.mark.parametrize("name", MODELS)
def test_batched_greedy_text_is_transformers_text(
    name: str,
    format_name: str,
    source: Callable[[str], Path],
    checkpoint: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    directory = checkpoint(name, format_name)
    engine = compile_engine(directory, tmp_path / "engine")
    rows = windows(name, source(name)).tolist()
    lengths = (1, 5, 20, 33, 64, 70, 120, 7)
    prompts = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    (tmp_path / "no tokenizer").mkdir()
    found = greedy(engine, prompts, NEW_TOKENS, tmp_path / "no tokenizer")
    assert found == reference_text(load_reference(directory), prompts)


@pytest.mark.parametrize("name", MODELS)
def test_float16_text_is_the_source_models(
    name: str,
    source: Callable[[str], Path],
    checkpoint: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    engine = compile_engine(checkpoint(name, "float16"), tmp_path / "engine")
    prompts = [row[:24] for row in windows(name, source(name)).tolist()]
    (tmp_path / "no tokenizer").mkdir()
    found = greedy(engine, prompts, NEW_TOKENS, tmp_path / "no tokenizer")
    assert found == reference_text(load_source(source(name)), prompts)


@pytest.mark.parametrize(
    ("arithmetic", "cache_precision", "runs"),
    [
        ("f32", "f16", True),
        ("f32", "u8", True),
        ("bf16", "bf16", True),
        ("bf16", "u8", True),
        ("f32", "bf16", False),
        ("bf16", "f32", False),
    ],
)
def test_the_pipeline_accepts_exactly_the_precisions_that_preflight_does(
    arithmetic: str,
    cache_precision: str,
    runs: bool,
    checkpoint: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    engine = compile_engine(
        checkpoint("demo", "float16"),
        tmp_path / "engine",
        inference_precision=arithmetic,
        kv_cache_precision=cache_precision,
    )
    (tmp_path / "no tokenizer").mkdir()
    if runs:
        assert len(greedy(engine, [[3, 4, 5]], 4, tmp_path / "no tokenizer")[0]) == 4
    else:
        with pytest.raises(RuntimeError, match="expect kvcache type"):
            greedy(engine, [[3, 4, 5]], 4, tmp_path / "no tokenizer")

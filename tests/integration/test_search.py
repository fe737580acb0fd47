"""A search against ModelOpt's own calibration of each value, and recipes written by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")

import torch
import transformers

from pipeline.dependencies import require
from pipeline.errors import UsageError
from pipeline.progress import Silent
from pipeline.quantize.calibrate import calibrate
from pipeline.quantize.formats import modelopt_config
from pipeline.quantize.statistics import Statistics
from pipeline.quantize.walk import Walk
from pipeline.reference import load_reference
from pipeline.source.runtime import offline_and_quiet
from tests.integration.quantize_support import (
    SIZES,
    VOCAB,
    calibration_words,
    recipe,
    run_stage,
    write_source,
)

SEARCH = {"tokens": 300}
special: Any = pytest.importorskip("scipy.special")
VALUES: dict[str, tuple[str, tuple[float, ...]]] = {
    "int8_sq": ("smoothquant_alpha", (0.5, 0.75, 1.0)),
    "int4_awq": ("group_size", (64, 128)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("Llama", tmp_path_factory.mktemp("source") / "Llama")


def searched(source: Path, output: Path, name: str) -> dict[str, Any]:
    """Runs the stage with a search and returns what its facts say of it."""
    _, values = VALUES[name]
    settings = recipe(source, format=name, search=SEARCH | {"candidates": list(values)})
    found: dict[str, Any] = run_stage(settings, source, output)["search"]
    return found


def by_hand(source: Path, output: Path, name: str, value: float) -> Path:
    parameter, _ = VALUES[name]
    run_stage(recipe(source, format=name, **{parameter: value}), source, output)
    return output


def divergence(source: Path, checkpoint: Path) -> float:
    """Mean KL divergence in nats, of transformers' source and the files, on unused paragraphs.

    A paragraph has 30 words, and a word is a token: ``w17`` is 17.
    """
    paragraphs = calibration_words().split("\n\n")
    used = set(random.Random(1234).sample(range(len(paragraphs)), 24))
    rest = [text for number, text in enumerate(paragraphs) if number not in used]
    random.Random(1234).shuffle(rest)
    left, sums = SEARCH["tokens"], []
    original = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    written: Any = load_reference(checkpoint)
    for text in rest:
        ids = [int(word[1:]) for word in text.split()][: left + 1]
        if len(ids) < 2:
            break
        left -= len(ids) - 1
        with torch.inference_mode():
            p, q = (
                special.log_softmax(
                    model(input_ids=torch.tensor([ids])).logits[0, :-1].double().numpy(), 1
                )
                for model in (original, written)
            )
        sums.append(special.rel_entr(np.exp(p), np.exp(q[:, :VOCAB])).sum())
    assert left == 0
    return float(sum(sums)) / SEARCH["tokens"]


@pytest.mark.parametrize("name", VALUES)
def test_the_curve_and_the_choice_are_those_of_checkpoints_written_by_hand(
    name: str, source: Path, tmp_path: Path
) -> None:
    found = searched(source, tmp_path / "searched", name)
    parameter, values = VALUES[name]
    written = {value: by_hand(source, tmp_path / f"{value}", name, value) for value in values}
    measured = {value: divergence(source, folder) for value, folder in written.items()}

    assert found["parameter"] == parameter
    assert found["tokens"] == SEARCH["tokens"]
    assert [point["value"] for point in found["curve"]] == list(values)
    for point in found["curve"]:
        assert point["kl_divergence"] == pytest.approx(measured[point["value"]], rel=1e-3)
    assert len(set(measured.values())) == len(values)
    assert found["chosen"] == min(measured, key=lambda value: measured[value])

    files = sorted(path.name for path in (tmp_path / "searched").iterdir())
    assert files == ["config.json", "rank0.safetensors"]
    for file in files:
        one, other = (folder / file for folder in (tmp_path / "searched", written[found["chosen"]]))
        assert one.read_bytes() == other.read_bytes(), file


@pytest.mark.parametrize(
    ("name", "kv_cache"), [("int8_sq", "int8"), ("int8_sq", None), ("int4_awq", "fp8")]
)
def test_statistics_of_one_pass_give_what_a_fresh_calibration_gives(
    name: str, kv_cache: str | None, source: Path
) -> None:
    """Every scale and every weight, bit for bit; ModelOpt's own run is the judge."""
    parameter, values = VALUES[name]
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(1, VOCAB, (3, 4, 20), generator=generator)
    statistics = Statistics()
    passes: list[int] = []

    def forward(model: Any) -> None:
        passes.append(1)
        for batch in rows:
            model(input_ids=batch, use_cache=False)

    def load() -> Any:
        factory: Any = transformers.AutoModelForCausalLM
        return factory.from_pretrained(source, dtype=torch.float32).eval()

    for value in values:
        section = recipe(source, format=name, kv_cache=kv_cache, **{parameter: value}).quantize
        fresh = load()
        with offline_and_quiet(Silent()), torch.inference_mode():
            mtq = require("modelopt.torch.quantization", "quantize")
            mtq.quantize(fresh, modelopt_config(section), forward_loop=forward)
            again = calibrate(load(), section, rows.tolist(), Silent(), statistics)
        one, other = state(fresh), state(again)
        assert one.keys() == other.keys()
        assert sum("_pre_quant_scale" in key for key in one) == 14
        assert sum("_bmm_quantizer._amax" in key for key in one) == (4 if kv_cache else 0)
        different = [key for key in one if not torch.equal(one[key], other[key])]
        assert different == []
    assert len(passes) == len(values) * (2 if name == "int4_awq" else 1)


def state(model: Any) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers, the quantizers' included."""
    found: dict[str, torch.Tensor] = dict(model.state_dict())
    # Statistics that ModelOpt keeps beside its buffers and that the export reads.
    for name, module in model.named_modules():
        smoothing = getattr(module, "_amax_for_smoothing", None)
        if smoothing is not None:
            found[f"{name}._amax_for_smoothing"] = smoothing
    return found


@pytest.mark.parametrize("name", VALUES)
def test_the_calibration_text_is_read_once_for_the_statistics(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search pass of AWQ runs each layer over it again for each group size."""
    original: Callable[..., Any] = Walk.run
    passes: list[Any] = []

    def run(self: Any, model: Any, cost: float) -> None:
        passes.append(model)
        original(self, model, cost)

    monkeypatch.setattr(Walk, "run", run)
    searched(source, tmp_path / "out", name)
    again = len(VALUES[name][1]) if name == "int4_awq" else 0
    assert len(passes) == SIZES["num_hidden_layers"] * (1 + again)


def test_a_text_that_calibration_uses_up_is_an_error_that_names_it(
    source: Path, tmp_path: Path
) -> None:
    settings = recipe(source, format="int8_sq", search={}, samples=40)
    with pytest.raises(UsageError, match=r"calibration\.txt: the file has 0 tokens that calib"):
        run_stage(settings, source, tmp_path / "out")

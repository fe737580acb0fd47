"""What decides the key of a quantized checkpoint, and the surroundings it is made in."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.source.runtime import offline_and_quiet
from pipeline.stages import quantize
from tests.conftest import PROJECT


def recipe(text: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"source": "model"},
            "quantize": {"format": "int4_awq", "calibration": {"text": str(text)}, **changes},
        }
    )


def test_the_stage_imports_nothing_heavy() -> None:
    program = (
        "import sys, pipeline.stages.quantize\n"
        "heavy = {'numpy', 'torch', 'transformers', 'modelopt'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PROJECT)


def test_only_what_a_format_reads_is_in_its_key(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    awq, other_group = recipe(text), recipe(text, group_size=64)
    assert quantize.section(awq) != quantize.section(other_group)
    assert quantize.section(awq) == quantize.section(recipe(text, smoothquant_alpha=0.5))
    int8, other_alpha = (
        recipe(text, format="int8_sq", smoothquant_alpha=alpha) for alpha in (1.0, 0.5)
    )
    assert quantize.section(int8) != quantize.section(other_alpha)
    plain = quantize.section(recipe(text, format="float16"))
    assert plain == quantize.section(recipe(text, format="float16", device="cpu"))


def test_the_order_and_portable_count_where_they_are_read(tmp_path: Path) -> None:
    """A recipe that says neither keeps its key, and so its checkpoint."""
    text = tmp_path / "t.txt"
    for name, order, portable in (
        ("int4_gptq", True, False),
        ("int4_awq", False, True),
        ("int8_sq", False, True),
        ("fp8", False, False),
    ):
        plain = quantize.section(recipe(text, format=name))
        assert not {"act_order", "portable"} & plain.keys()
        assert (quantize.section(recipe(text, format=name, act_order=True)) != plain) == order
        assert (quantize.section(recipe(text, format=name, portable=True)) != plain) == portable


def test_scales_that_belong_to_fp8_activations_are_not_moved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format w4a8_awq cannot be portable: its pre-quant"):
        recipe(tmp_path / "t.txt", format="w4a8_awq", portable=True)


def test_the_calibration_text_counts_by_contents(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("a")
    other.write_text("a")
    assert quantize.section(recipe(one)) == quantize.section(recipe(other))
    assert quantize.material(recipe(one)) == quantize.material(recipe(other))
    before = quantize.material(recipe(one))
    one.write_text("b")
    assert quantize.material(recipe(one)) != before
    assert quantize.material(recipe(one, format="bfloat16"))["calibration_text"] is None


def test_a_missing_calibration_text_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"quantize\.calibration\.text.*gone\.txt"):
        quantize.material(recipe(tmp_path / "gone.txt"))


def test_surroundings_pass_on_only_warnings_that_say_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes: list[str] = []

    class Notes(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with offline_and_quiet(Notes()):
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        print("chatter")
        warnings.warn("Enable lm_head quantization. It may lose accuracy.", stacklevel=1)
        warnings.warn("Large KV activation detected: 0.7", stacklevel=1)
        warnings.warn("Large KV activation detected: 0.7", stacklevel=1)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert notes == ["warning: Large KV activation detected: 0.7"]
    assert capsys.readouterr().out == ""

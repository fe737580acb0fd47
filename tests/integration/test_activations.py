"""Activations beyond the checkpoint's dtype, against plain torch in that dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.errors import CheckpointError
from pipeline.layers.parts import whole
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.reference.activations import ActivationWatch
from pipeline.stages.base import StageContext
from pipeline.stages.evaluate import STAGE
from pipeline.stages.quantize import STAGE as QUANTIZE
from pipeline.store.artifact import Artifact

from .quantize_support import calibration_words, recipe, run_stage, write_source

IDS = torch.tensor([[5, 9, 14, 300, 41, 7]])


def _scaled(
    source: Path, target: Path, name: str, factor: float, dtype: torch.dtype = torch.float32
) -> Path:
    """A copy of a source whose one weight is larger."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    model.save_pretrained(target)
    for path in source.glob("*token*"):
        (target / path.name).write_bytes(path.read_bytes())
    (target / "heldout.txt").write_text(calibration_words())
    return target


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("Llama", tmp_path_factory.mktemp("calm") / "model")


@pytest.fixture(scope="module")
def loud(calm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every weight fits float16; gate times up does not."""
    target = tmp_path_factory.mktemp("loud") / "model"
    return _scaled(calm, target, "model.layers.1.mlp.up_proj.weight", 5e4)


@torch.inference_mode()
def _largest_by_torch(source: Path, dtype: torch.dtype) -> tuple[float, bool]:
    """Of all inputs and outputs of linears; and whether the logits are finite."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
    seen: list[float] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _m, inputs, output: seen.extend(
                    float(x.float().abs().max()) for x in (inputs[0], output)
                )
            )
    logits = model(input_ids=IDS, use_cache=False).logits
    return max(seen), bool(logits.isfinite().all())


@pytest.mark.parametrize("which", ["calm", "loud"])
def test_the_largest_is_that_of_transformers_in_float32(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(which)
    run_stage(recipe(source, format="float16"), source, tmp_path / "checkpoint")
    model = load_reference(tmp_path / "checkpoint")
    watch = ActivationWatch("float16")
    with torch.inference_mode(), watch.watching(whole(model)):
        before = model(input_ids=IDS).logits
    found = watch.found()
    largest, _ = _largest_by_torch(source, torch.float32)
    # The residual stream and the norms are seen as well, but are no larger here.
    assert found.largest == pytest.approx(largest, rel=2e-3)
    assert (found.beyond > 0) == (largest > 65504) == (which == "loud")
    if which == "loud":
        assert found.where == "model.layers.1.mlp.down_proj"
    # Nothing is left behind, and looking changed nothing.
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, before)
    assert watch.found() == found


def test_rounding_to_float16_gives_what_torch_gives_in_float16(
    calm: Path, loud: Path, tmp_path: Path
) -> None:
    for source, name in ((calm, "calm"), (loud, "loud")):
        run_stage(recipe(source, format="float16"), source, tmp_path / name)
        model: Any = load_reference(tmp_path / name)
        with torch.inference_mode():
            exact = model(input_ids=IDS).logits
            with ActivationWatch("float16", rounded=True).watching(whole(model)):
                ours = model(input_ids=IDS).logits
            own: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float16
            )
            theirs = own.eval()(input_ids=IDS).logits.float()
        assert bool(theirs.isfinite().all()) == bool(ours.isfinite().all()) == (source == calm)
        if source == calm:
            # It moves as far from float32 as float16 does, in another order of additions.
            moved = float((theirs - exact).abs().mean())
            assert 0.5 * moved < float((ours - exact).abs().mean()) < 2 * moved
    # bfloat16 has the range.
    run_stage(recipe(loud, format="bfloat16"), loud, tmp_path / "wide")
    model = load_reference(tmp_path / "wide")
    watch = ActivationWatch("bfloat16", rounded=True)
    with torch.inference_mode(), watch.watching(whole(model)):
        assert bool(model(input_ids=IDS).logits.isfinite().all())
    assert watch.found().beyond == 0
    assert _largest_by_torch(loud, torch.bfloat16)[1]


class Notes(Silent):
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def _evaluate(source: Path, folder: Path, dtype: str) -> tuple[dict[str, Any], list[str]]:
    settings = recipe(source, format="float16")
    run_stage(settings, source, folder / "checkpoint")
    evaluate = {"text": str(source / "heldout.txt"), "tokens": 300, "dtype": dtype}
    data = settings.model_dump(by_alias=True)
    settings = Recipe.model_validate({**data, "evaluate": evaluate})
    inputs = {
        "source": Artifact("source", "key", "digest", source, {}),
        "quantize": Artifact("quantize", "key", "digest", folder / "checkpoint", {}),
    }
    notes, output = Notes(), folder / "evaluation"
    output.mkdir()
    facts = STAGE.run(StageContext(settings, inputs, output, notes))
    assert (
        json.loads((output / "evaluation.json").read_text())["activations"]
        == (facts["activations"])
    )
    return facts, notes.texts


def test_the_gate_passes_in_float32_and_the_warning_does_not_let_it_go(
    loud: Path, tmp_path: Path
) -> None:
    facts, notes = _evaluate(loud, tmp_path, "float32")
    assert facts["perplexity_increase"]["value"] < 0.02
    assert facts["activations"]["beyond"] > 0
    assert facts["activations"]["largest"] > 65504
    (warning,) = (note for note in notes if note.startswith("warning: "))
    assert "beyond 65504, the range of float16" in warning
    assert "Set model.dtype to bfloat16" in warning


def test_evaluated_in_its_own_dtype_the_model_is_as_broken_as_on_a_gpu(
    loud: Path, tmp_path: Path
) -> None:
    facts, _ = _evaluate(loud, tmp_path, "model")
    assert facts["perplexity"] == {"value": None, "low": None, "high": None}
    assert facts["activations"]["rounded"] is True


@pytest.mark.parametrize(("dtype", "told"), [("float16", 1), ("bfloat16", 0)])
def test_quantizing_says_that_the_range_gets_smaller(
    calm: Path, tmp_path: Path, dtype: str, told: int
) -> None:
    source = _scaled(calm, tmp_path / "model", "model.norm.weight", 1.0, torch.bfloat16)
    notes, output = Notes(), tmp_path / "checkpoint"
    output.mkdir()
    inputs = {"source": Artifact("source", "key", "digest", source, {})}
    QUANTIZE.run(StageContext(recipe(source, format=dtype), inputs, output, notes))
    named = [note for note in notes.texts if "the model is bfloat16 and the recipe makes" in note]
    assert len(named) == told


def test_a_weight_beyond_float16_is_an_error_of_the_dtype(calm: Path, tmp_path: Path) -> None:
    source = _scaled(calm, tmp_path / "model", "model.layers.0.mlp.down_proj.weight", 1e6)
    for name in ("float16", "int4_awq"):
        with pytest.raises(CheckpointError, match=r"infinite in float16\. Set model\.dtype to bfl"):
            run_stage(recipe(source, format=name), source, tmp_path / name)
    run_stage(recipe(source, format="bfloat16"), source, tmp_path / "bfloat16")

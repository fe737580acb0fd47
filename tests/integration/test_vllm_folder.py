"""The folder for vLLM, read by transformers and compressed-tensors, against the checkpoint."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("compressed_tensors", reason="compressed-tensors needs Python 3.11")

from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.reference.linear import CheckpointLinear
from pipeline.targets.vllm.write import write_export
from tests.integration.quantize_support import ARCHITECTURES, VOCAB, write_source
from tests.unit.vllm.support import recipe, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: write_source(name, folder / name))


def both(source: Path, wanted: Recipe, folder: Path) -> tuple[Any, Any]:
    """The checkpoint's reference, and the folder as transformers reads it, in float32."""
    checkpoint, output = write_checkpoint(source, wanted, folder / "checkpoint"), folder / "export"
    output.mkdir()
    write_export(checkpoint, source, wanted, output, Silent())
    read = transformers.AutoModelForCausalLM.from_pretrained(output / "model", dtype=torch.float32)
    return load_reference(checkpoint), read


def linears(model: Any) -> dict[str, torch.Tensor]:
    return {
        name.removesuffix(".weight"): value
        for name, value in model.named_parameters()
        if name.endswith("proj.weight")
    }


def assert_same_weights(reference: Any, read: Any) -> None:
    """Once it has computed something: until then compressed-tensors keeps the codes."""
    ours, theirs = linears(reference), linears(read)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name].float()), name


@torch.inference_mode()
def logits(model: Any, shape: tuple[int, int] = (2, 24)) -> torch.Tensor:
    ids = np.random.default_rng(0).integers(0, VOCAB, shape)
    found: torch.Tensor = model(input_ids=torch.tensor(ids)).logits
    return found


@pytest.mark.parametrize(
    "architecture",
    [
        "Qwen2",
        *(pytest.param(name, marks=pytest.mark.proof) for name in ARCHITECTURES if name != "Qwen2"),
    ],
)
def test_int4_is_the_checkpoint_to_the_last_bit(
    source: Any, architecture: str, tmp_path: Path
) -> None:
    """Fused linears parted, biases, tied heads and norms of heads among it."""
    reference, read = both(source(architecture), recipe(source(architecture)), tmp_path)
    assert torch.equal(logits(reference), logits(read))
    assert_same_weights(reference, read)


def test_ranks_are_put_together(source: Any, tmp_path: Path) -> None:
    ranks = {"tensor_parallel": 2, "pipeline_parallel": 2}
    reference, read = both(source("Qwen3"), recipe(source("Qwen3"), compile=ranks), tmp_path)
    assert torch.equal(logits(reference), logits(read))
    assert_same_weights(reference, read)


FLOATS = ("bfloat16", "float32")


@pytest.mark.parametrize(
    "name",
    ["float16", "int8_wo", *(pytest.param(name, marks=pytest.mark.proof) for name in FLOATS)],
)
def test_formats_without_groups_are_the_checkpoint(source: Any, name: str, tmp_path: Path) -> None:
    reference, read = both(source("Qwen2"), recipe(source("Qwen2"), name), tmp_path)
    assert torch.equal(logits(reference), logits(read))
    assert_same_weights(reference, read)


@pytest.mark.parametrize(("name", "layout"), [("int8_sq", None), ("fp8", "compressed-tensors")])
def test_formats_that_round_activations(
    source: Any, name: str, layout: str | None, tmp_path: Path
) -> None:
    """Inputs are rounded on both sides, with the checkpoint's own scales."""
    wanted = recipe(source("Llama"), name, vllm={"layout": layout})
    reference, read = both(source("Llama"), wanted, tmp_path)
    # A product that is added in another order may turn an activation next to a half into the next
    # code, with all that comes of it; so there are many short texts, and few that it happens in.
    texts = (32, 6)
    expected, found = logits(reference, texts), logits(read, texts)
    assert_same_weights(reference, read)
    apart = (expected - found).abs().amax((1, 2)).median()
    assert apart < 1e-5
    for module in reference.modules():
        if isinstance(module, CheckpointLinear):
            module.step = None
    assert (logits(reference, texts) - found).abs().amax((1, 2)).median() > 10 * apart

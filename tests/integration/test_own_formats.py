"""Checkpoints of the formats that this project rounds itself: written, evaluated and executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.checkpoint import dequantize, open_checkpoint
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from tests.conftest import DEMO_MODEL
from tests.integration.openvino_support import (
    compile_engine,
    executed_nodes,
    logits,
    open_engine,
    relative_rms,
)
from tests.integration.quantize_support import VOCAB, recipe, run_stage, write_source

LAYERS, LINEARS_PER_LAYER = 2, 5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2: biases, and an embedding that is the head too."""
    torch.set_num_threads(1)
    return write_source("Qwen2", tmp_path_factory.mktemp("models") / "Qwen2")


def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (2, 24))


def rounded_by_bitsandbytes(source: Path, name: str) -> torch.nn.Module:
    """The source in float32, with each linear of its layers rounded by bitsandbytes."""
    functional = pytest.importorskip("bitsandbytes").functional
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_pretrained(source, torch_dtype=torch.float32)
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and key != "lm_head":
            weight = module.weight.data
            if name == "nf4":
                packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
                rounded = functional.dequantize_4bit(packed, state)
            else:
                codes, largest, _ = functional.int8_vectorwise_quant(weight)
                rounded = codes.float() * (largest / 127)[:, None]
            module.weight.data = rounded
    # What is not quantized is float16 in the checkpoint.
    for key, parameter in model.named_parameters():
        if "proj" not in key or key.endswith("bias"):
            parameter.data = parameter.data.half().float()
    found: torch.nn.Module = model.eval()
    return found


@pytest.mark.parametrize(("name", "stored"), [("nf4", "nf4"), ("int8_wo", "i8")])
@torch.inference_mode()
def test_a_checkpoint_is_bitsandbytes_rounding_and_its_engine_stays_packed(
    name: str, stored: str, source: Path, tmp_path: Path
) -> None:
    # Cut for four ranks, and put together again.
    settings = recipe(source, format=name, tp=2, pp=2)
    checkpoint = tmp_path / "checkpoint"
    run_stage(settings, source, checkpoint)
    assert open_checkpoint(checkpoint).config.world_size == 4
    tokens = torch.tensor(ids())
    expected = rounded_by_bitsandbytes(source, name)(tokens).logits
    reference = load_reference(checkpoint)(tokens).logits
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-4)
    engine = open_engine(compile_engine(checkpoint, tmp_path / "engine"))
    found = logits(engine, ids(), prefill=20)
    assert relative_rms(found, reference.numpy()) < 1e-5
    products = [n for n in executed_nodes(engine) if n["type"] == "FullyConnected"]
    packed = [node for node in products if node["inputs"][1] == stored]
    assert len(packed) == LAYERS * LINEARS_PER_LAYER
    assert {node["inputs"][0] for node in packed} == {"f32"}


@torch.inference_mode()
def test_float32_is_the_source_itself(source: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    run_stage(recipe(source, format="float32"), source, checkpoint)
    assert open_checkpoint(checkpoint).config.dtype == "float32"
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_pretrained(source, torch_dtype=torch.float32).eval()
    expected = model(torch.tensor(ids())).logits.numpy()
    reference = load_reference(checkpoint)(torch.tensor(ids())).logits.numpy()
    np.testing.assert_allclose(reference, expected, rtol=1e-5, atol=1e-5)
    engine = open_engine(compile_engine(checkpoint, tmp_path / "engine"))
    assert relative_rms(logits(engine, ids(), prefill=20), expected) < 1e-5


@torch.inference_mode()
def test_weight_only_int8_is_q8_0_with_its_codes(tmp_path: Path) -> None:
    """The codes stay; the scale of a row becomes float16, so within 2^-11 of it."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from pipeline.targets.llamacpp.gguf_file import write_gguf
    from pipeline.targets.llamacpp.source import read_tokens

    wanted = Recipe.model_validate(
        {
            "name": "t",
            "model": {"source": str(DEMO_MODEL)},
            "quantize": {"format": "int8_wo", "device": "cpu"},
        }
    )
    checkpoint = tmp_path / "checkpoint"
    run_stage(wanted, DEMO_MODEL, checkpoint)
    path = tmp_path / "model.gguf"
    write_gguf(checkpoint, path, "stored", read_tokens(DEMO_MODEL, Silent()), name="t")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    down = tensors["blk.0.ffn_down.weight"]
    assert down.tensor_type == gguf.GGMLQuantizationType.Q8_0
    found = gguf.quants.dequantize(down.data, down.tensor_type)
    expected = dequantize(open_checkpoint(checkpoint).weights().layers[0].proj)
    np.testing.assert_allclose(found, expected, rtol=2**-11)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_folder_in_floating_point_is_the_source(name: str, source: Path, tmp_path: Path) -> None:
    """ModelOpt's folder, for the LLM API and Edge-LLM, as transformers reads it."""
    from pipeline.targets.llmapi.unified import write_unified

    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "folder"
    run_stage(recipe(source, format=name), source, checkpoint)
    folder.mkdir()
    write_unified(checkpoint, source, folder, Silent(), fused=True)
    factory: Any = transformers.AutoModelForCausalLM
    dtype = getattr(torch, name)
    found, expected = (
        factory.from_pretrained(place, torch_dtype=dtype).state_dict() for place in (folder, source)
    )
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key

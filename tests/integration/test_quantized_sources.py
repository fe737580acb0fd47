"""Folders that other libraries quantized, through the checkpoint onto the CPU.

The logits are held against transformers: running the same folder with its own library, or a model
in float32 with the weights that the folder's layout says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.checkpoint import dequantize, open_checkpoint
from pipeline.errors import UnsupportedError
from pipeline.progress import Silent
from pipeline.quantize.calibrate import calibrate
from pipeline.quantize.loading import load_model
from pipeline.recipe.evaluate import Gates
from pipeline.recipe.file import load_recipe
from pipeline.reference import load_reference
from pipeline.reference.source import load_source
from pipeline.running.runner import run_recipe
from pipeline.store.build_dir import BuildDir
from tests import foreign_folders as foreign
from tests.foreign_folders import Made
from tests.integration.openvino_support import (
    compile_engine,
    executed_nodes,
    logits,
    open_engine,
    relative_rms,
)
from tests.integration.quantize_support import recipe, write_source
from tests.unit.test_quantized_folders import (
    BITSANDBYTES,
    BY_THE_LIBRARY,
    WRITTEN_OUT,
    converted,
)

# Of logits whose largest is about 40: what float32 sums in another order leave.
CLOSE = 1e-4


def further(name: str) -> Any:
    """A case that shows what others show."""
    return pytest.param(name, marks=pytest.mark.proof)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def token_ids() -> np.ndarray:
    """Two texts of random words."""
    return np.random.default_rng(0).integers(1, foreign.VOCAB, (2, 24))


def in_float(made: Made) -> Any:
    """transformers' own model, with the weights that were written out."""
    import transformers

    config = transformers.LlamaConfig(**foreign.CONFIG)
    model = transformers.LlamaForCausalLM(config).float()
    state = {
        name: torch.from_numpy(made.tensors[name].astype(np.float32))
        for name in made.tensors
        if name.endswith(("norm.weight", "embed_tokens.weight", "lm_head.weight"))
    }
    for name, weight in made.weights.items():
        state[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32))
    model.load_state_dict(state, strict=True)
    return model.eval()


def by_its_library(made: Made) -> Any:
    """transformers on the folder, with the library that its config.json names."""
    import transformers

    factory: Any = transformers.AutoModelForCausalLM
    return factory.from_pretrained(made.path, dtype=torch.float32).eval()


def computed(model: Any) -> np.ndarray:
    """Logits of :func:`token_ids`."""
    with torch.inference_mode():
        found: np.ndarray = model(input_ids=torch.from_numpy(token_ids())).logits.float().numpy()
    return found


def engine_of(made: Made, checkpoint: Path) -> Any:
    """The compiled graph of a checkpoint."""
    return open_engine(compile_engine(checkpoint, made.path.parent / "engine"))


@pytest.mark.parametrize(
    "name",
    [
        *("gptq act-order asym", "awq"),
        *(further(name) for name in ("gptq", "gptq asym", "compressed act-order")),
    ],
)
def test_a_written_out_folder_is_computed_as_its_layout_says(name: str, tmp_path: Path) -> None:
    made = WRITTEN_OUT[name](tmp_path / "model")
    expected = computed(in_float(made))
    checkpoint = converted(made)
    assert np.abs(computed(load_reference(checkpoint)) - expected).max() < CLOSE
    assert np.abs(computed(load_source(made.path)) - expected).max() < CLOSE
    found = logits(engine_of(made, checkpoint), token_ids(), 16)
    assert np.abs(found - expected).max() < CLOSE


def test_zero_points_stay_packed(tmp_path: Path) -> None:
    made = foreign.gptq(tmp_path / "model", sym=False, v2=True)
    nodes = executed_nodes(engine_of(made, converted(made)))
    products = [node for node in nodes if node["type"] == "FullyConnected"]
    packed = [node for node in products if node["inputs"][1] == "u4"]
    assert len(packed) == 5 * foreign.LAYERS
    assert [node["name"] for node in products if node not in packed] == ["lm_head"]


@pytest.mark.parametrize("name", ["int4", further("int4 asym")])
def test_compressed_tensors_is_computed_as_transformers_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    made = BY_THE_LIBRARY[name](tmp_path / "model")
    # transformers 4.57 cannot load packed zero points; the library's own weights then have to do.
    model = in_float(made) if name == "int4 asym" else by_its_library(made)
    expected = computed(model)
    checkpoint = converted(made)
    assert np.abs(computed(load_reference(checkpoint)) - expected).max() < CLOSE
    found = logits(engine_of(made, checkpoint), token_ids(), 16)
    assert np.abs(found - expected).max() < CLOSE


@pytest.mark.parametrize("name", ["plain scales", further("scales quantized too"), "int8"])
def test_bitsandbytes_is_computed_as_it_dequantizes(name: str, tmp_path: Path) -> None:
    """On the CPU the library itself rounds block scales to bfloat16 before it multiplies."""
    pytest.importorskip("bitsandbytes")
    make = {**BITSANDBYTES, "int8": foreign.llm_int8}[name]
    made = make(tmp_path / "model")
    expected = computed(in_float(made))
    checkpoint = converted(made)
    assert np.abs(computed(load_reference(checkpoint)) - expected).max() < CLOSE
    engine = engine_of(made, checkpoint)
    assert np.abs(logits(engine, token_ids(), 16) - expected).max() < CLOSE
    products = [node for node in executed_nodes(engine) if node["type"] == "FullyConnected"]
    stored = "i8" if name == "int8" else "nf4"
    assert sum(node["inputs"][1] == stored for node in products) == 5 * foreign.LAYERS


def test_static_int8_activations_are_those_of_the_folder(tmp_path: Path) -> None:
    """Rounded values differ by a step where float32 sums fall on either side of a half."""
    pytest.importorskip("compressed_tensors")
    made = foreign.compressed_int8(tmp_path / "model")
    expected = computed(by_its_library(made))
    checkpoint = converted(made)
    plain = computed(in_float(made))
    rounding = np.abs(plain - expected).mean()
    for found in (
        computed(load_reference(checkpoint)),
        logits(engine_of(made, checkpoint), token_ids(), 24),
    ):
        # A tenth of what the rounding of activations does to this model.
        assert np.abs(found - expected).mean() < rounding / 10


def original_of(made: Made, folder: Path) -> Path:
    """A model in floating point that is a little off everywhere, as one before rounding is."""
    import shutil

    random = np.random.default_rng(5)
    kept = ("norm.weight", "embed_tokens.weight", "lm_head.weight")
    tensors = {name: array for name, array in made.tensors.items() if name.endswith(kept)}
    for name, weight in made.weights.items():
        noise = random.normal(scale=0.002, size=weight.shape)
        tensors[f"{name}.weight"] = (weight + noise).astype(np.float16)
    shutil.copytree(made.path, folder)
    Made(folder, {}, tensors, foreign.CONFIG).write()
    return folder


def test_a_run_measures_against_the_model_before_it_was_quantized(tmp_path: Path) -> None:
    """With ``evaluate.reference`` numbers are those of two models in transformers."""
    made = foreign.gptq(tmp_path / "model", sym=False, act_order=True)
    original = original_of(made, tmp_path / "original")
    random = np.random.default_rng(1)
    texts = [random.integers(1, foreign.VOCAB, 40) for _ in range(6)]
    lines = "\n\n".join(" ".join(f"w{word}" for word in text) for text in texts)
    (tmp_path / "text.txt").write_text(lines)
    (tmp_path / "recipe.yaml").write_text(
        "name: taken\nmodel: {source: model}\n"
        "evaluate: {text: text.txt, sequence_length: 64, gates: {completions: false}}\n"
        "compile: {max_input_len: 32, max_seq_len: 64}\n"
    )
    gates = [f"evaluate.gates.{name}=null" for name in Gates.model_fields if name != "completions"]

    def kl(*settings: str) -> float:
        recipe = load_recipe(tmp_path / "recipe.yaml", [*gates, *settings])
        run = run_recipe(recipe, BuildDir(tmp_path / "build"), Silent(), until="evaluate")
        artifact = run.stages["evaluate"].artifact
        assert artifact is not None
        return float(artifact.facts["kl_divergence"]["value"])

    assert kl() < 1e-9
    found = kl(f"evaluate.reference={original}")
    plain = Made(original, {}, {}, {})
    one, other = by_its_library(plain), in_float(made)
    total = count = 0.0
    for text in texts:
        ids = torch.from_numpy(text)[None]
        with torch.inference_mode():
            before, after = (
                model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
                for model in (one, other)
            )
        total += float((before.exp() * (before - after)).sum())
        count += len(text) - 1
    assert found == pytest.approx(total / count, rel=1e-3)
    assert found > 1e-4


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("int4_awq", {"group_size": 64}, 0.35),
        pytest.param("int8_sq", {}, 0.14, marks=pytest.mark.proof),
        pytest.param("fp8", {}, 0.0, marks=pytest.mark.proof),
    ],
)
def test_modelopts_unified_checkpoint_is_the_model_that_it_was_made_of(
    name: str, settings: dict[str, Any], most: float, tmp_path: Path
) -> None:
    """Against ModelOpt's own model in memory, whose scales each of its exports merges.

    Its export for TensorRT-LLM is 0.23 (INT4) and 0.09 (INT8) off, the folder 0.26 and 0.09.
    """
    import shutil

    modelopt = pytest.importorskip("modelopt.torch.export")
    source = write_source("Llama", tmp_path / "source")
    made_by = recipe(source, format=name, **settings)
    model = load_model(source, made_by)
    rows = np.random.default_rng(0).integers(1, 500, (8, 30))
    calibrate(model, made_by.quantize, [rows.tolist()], Silent())
    folder, ids = tmp_path / "model", torch.from_numpy(rows[:2])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.float().numpy()
        modelopt.export_hf_checkpoint(model, export_dir=folder)
    shutil.copy(source / "tokenizer.json", folder)
    made = Made(folder, {}, {})
    if name == "fp8":
        # It gives q, k and v a weight scale each, and the checkpoint has one for the three.
        with pytest.raises(UnsupportedError, match="q_proj, k_proj, v_proj have each a weight sc"):
            converted(made, "compile.target=tensorrt")
        return
    checkpoint = converted(made)
    if name == "int4_awq":
        linear = open_checkpoint(checkpoint).weights().layers[0].dense
        tensors = load_file(folder / "model.safetensors")
        packed = tensors["model.layers.0.self_attn.o_proj.weight"]
        codes = np.stack([packed & 0xF, packed >> 4], 1).reshape(-1, packed.shape[1])
        signed = np.where(codes > 7, codes.astype(np.int16) - 16, codes).astype(np.float32)
        scales = tensors["model.layers.0.self_attn.o_proj.weight_scale"].astype(np.float16)
        wanted = signed * np.repeat(scales.astype(np.float32), 64, axis=1)
        assert np.array_equal(dequantize(linear), wanted)
    with torch.inference_mode():
        found = load_reference(checkpoint)(input_ids=ids).logits.numpy()
    assert relative_rms(found, expected) < most

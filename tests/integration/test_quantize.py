"""The quantize stage with the real ModelOpt: what it writes for every architecture and format."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import Layer, Linear, Weights, dequantize, open_checkpoint
from pipeline.checkpoint.reader import TensorFile
from pipeline.errors import StageError, UnsupportedError, UsageError
from pipeline.models.facts import ModelFacts
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from tests.conftest import PROJECT
from tests.integration.quantize_support import (
    ARCHITECTURES,
    FORMATS,
    KV_CACHES,
    VOCAB,
    matrix_recipe,
    recipe,
    run_stage,
    write_source,
)

QUANT_ALGOS = {
    "float16": None,
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int4_awq": "W4A16_AWQ",
    "fp8": "FP8",
    "w4a8_awq": "W4A8_AWQ",
}


class Recorder(Silent):
    """Keeps notes, and how much of each task was reported."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: dict[str, list[float]] = {}

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Any]:
        counts = self.tasks[description] = [total, 0.0]

        class Counter:
            def advance(self, amount: float = 1.0) -> None:
                counts[1] += amount

        yield Counter()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_source(name, folder / name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def checkpoint(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``checkpoint(architecture, format, tp, pp)``: the directory the stage wrote, made once."""
    made: dict[tuple[str, str, int, int], Path] = {}

    def make(architecture: str, name: str, tp: int = 1, pp: int = 1) -> Path:
        key = (architecture, name, tp, pp)
        if key not in made:
            output = tmp_path_factory.mktemp("checkpoints") / "out"
            settings = matrix_recipe(sources[architecture], name, tp, pp)
            run_stage(settings, sources[architecture], output)
            made[key] = output
        return made[key]

    return make


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_states_the_sources_facts(
    architecture: str, name: str, checkpoint: Any, sources: dict[str, Path]
) -> None:
    output = checkpoint(architecture, name)
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "rank0.safetensors"]
    config = json.loads((output / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == QUANT_ALGOS[name]
    kv_cache = KV_CACHES.get(name)
    assert config["quantization"]["kv_cache_quant_algo"] == (kv_cache and kv_cache.upper())
    opened = open_checkpoint(output)
    # The checkpoint has a dtype of its own.
    assert opened.facts == replace(ModelFacts.from_directory(sources[architecture]), dtype=None)
    scales = {layer.kv_cache_scaling_factor for layer in opened.weights().layers}
    assert (None in scales) == (kv_cache is None)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("Llama", {"rotary_base": 500000.0, "norm_epsilon": 1e-5, "attn_bias": False}),
        ("Mistral", {"rotary_base": 1e6, "sliding_window": 64, "rotary_scaling": None}),
        ("Qwen2", {"qwen_type": "qwen2", "attn_bias": True, "seq_length": 8192}),
        ("Qwen3", {"qwen_type": "qwen3", "attn_bias": False, "head_size": 64}),
    ],
)
def test_keys_that_tensorrt_llm_would_otherwise_default(
    architecture: str, expected: dict[str, Any], checkpoint: Any
) -> None:
    config = json.loads((checkpoint(architecture, "int8_sq") / "config.json").read_text())
    assert {key: config[key] for key in expected} == expected
    assert config["architecture"] == f"{architecture}ForCausalLM"
    assert "rank" not in config
    if architecture == "Llama":
        assert config["rotary_scaling"]["rope_type"] == "llama3"
        assert config["rotary_scaling"]["factor"] == 8.0


@pytest.mark.parametrize("name", ["int4_awq", "w4a8_awq"])
def test_awq_does_not_pad_the_vocabulary(
    name: str, checkpoint: Any, sources: dict[str, Path]
) -> None:
    """A padded row would be a token the tokenizer cannot decode, with logit 0."""
    output = checkpoint("Llama", name)
    assert json.loads((output / "config.json").read_text())["vocab_size"] == VOCAB
    source = TensorFile(sources["Llama"] / "model.safetensors")
    weights = open_checkpoint(output).weights()
    for found, wanted in (
        (weights.vocab_embedding, "model.embed_tokens.weight"),
        (weights.lm_head.weight, "lm_head.weight"),
    ):
        assert np.array_equal(found, source.read(wanted).astype(np.float16))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pre_quant_scales_stay_finite_where_tensorrt_llm_divides_them(
    architecture: str, checkpoint: Any
) -> None:
    """As its loader does, in place and in float16: models/modeling_utils.py, W4A8_AWQ."""
    import torch

    file = TensorFile(checkpoint(architecture, "w4a8_awq") / "rank0.safetensors")
    quotients = {}
    for name in file.tensors:
        module, _, kind = name.rpartition(".")
        if kind == "prequant_scaling_factor":
            loaded = torch.from_numpy(np.array(file.read(name)))
            loaded /= torch.from_numpy(np.array(file.read(f"{module}.activation_scaling_factor")))
            assert loaded.dtype == torch.float16
            assert torch.isfinite(loaded).all(), name
            quotients[module] = loaded.float().numpy()
    # The first neurons of this layer are dead, and AWQ gives them pre-quant scales without bounds.
    dead = quotients["transformer.layers.1.mlp.proj"]
    assert dead[:3].min() > 60_000
    assert dead[3:].max() < 60_000


def test_float16_is_the_source_rounded(checkpoint: Any, sources: dict[str, Path]) -> None:
    """Every name and every q/k/v order, against the Hugging Face file itself."""
    source = TensorFile(sources["Qwen3"] / "model.safetensors")

    def read(name: str) -> Any:
        return source.read(name).astype(np.float16)

    weights = open_checkpoint(checkpoint("Qwen3", "float16")).weights()
    assert np.array_equal(weights.ln_f, read("model.norm.weight"))
    for number, layer in enumerate(weights.layers):
        prefix = f"model.layers.{number}"
        qkv = [read(f"{prefix}.self_attn.{part}_proj.weight") for part in "qkv"]
        for found, wanted in (
            (layer.qkv.weight, np.concatenate(qkv)),
            (layer.dense.weight, read(f"{prefix}.self_attn.o_proj.weight")),
            (layer.fc.weight, read(f"{prefix}.mlp.gate_proj.weight")),
            (layer.gate.weight, read(f"{prefix}.mlp.up_proj.weight")),
            (layer.proj.weight, read(f"{prefix}.mlp.down_proj.weight")),
            (layer.input_layernorm, read(f"{prefix}.input_layernorm.weight")),
            (layer.post_layernorm, read(f"{prefix}.post_attention_layernorm.weight")),
            (layer.q_layernorm, read(f"{prefix}.self_attn.q_norm.weight")),
            (layer.k_layernorm, read(f"{prefix}.self_attn.k_norm.weight")),
        ):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("name", FORMATS)
def test_ranks_merge_to_the_single_rank_bit_for_bit(
    name: str, tp: int, pp: int, checkpoint: Any
) -> None:
    """The stage validates every rank before it returns."""
    whole = open_checkpoint(checkpoint("Qwen2", name)).weights()
    parts = checkpoint("Qwen2", name, tp, pp)
    assert len(list(parts.glob("rank*.safetensors"))) == tp * pp
    assert_same_weights(open_checkpoint(parts).weights(), whole)


def test_kv_heads_are_copied_when_there_are_more_ranks(checkpoint: Any) -> None:
    whole = open_checkpoint(checkpoint("Llama", "float16")).weights()
    parts = open_checkpoint(checkpoint("Llama", "float16", 4)).weights()
    assert_same_weights(parts, whole)


def assert_same_weights(found: Weights, wanted: Weights) -> None:
    assert np.array_equal(found.vocab_embedding, wanted.vocab_embedding)
    assert np.array_equal(found.ln_f, wanted.ln_f)
    assert_same(found.lm_head, wanted.lm_head)
    assert len(found.layers) == len(wanted.layers)
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert_same(one, other)


def assert_same(found: Layer | Linear, wanted: Layer | Linear) -> None:
    for field in fields(wanted):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(other, Linear):
            assert_same(one, other)
        elif isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, field.name
            assert one.tobytes() == other.tobytes(), field.name
        else:
            assert one == other, field.name


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", "float16"), ("int4_awq", "bfloat16")])
def test_bfloat16(name: str, dtype: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """An unquantized format is its own precision; quantized ones take it from model.dtype."""
    settings = recipe(sources["Llama"], format=name, dtype=dtype)
    run_stage(settings, sources["Llama"], tmp_path / "out")
    opened = open_checkpoint(tmp_path / "out")
    assert opened.config.dtype == "bfloat16"
    assert opened.weights().ln_f.dtype.name == "bfloat16"


@pytest.mark.parametrize("name", FORMATS)
def test_large_models_are_calibrated_in_their_own_precision(
    name: str,
    sources: dict[str, Path],
    checkpoint: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.quantize import loading

    monkeypatch.setattr(loading, "FLOAT32_LIMIT_BYTES", 0)
    settings = matrix_recipe(sources["Qwen2"], name)
    run_stage(settings, sources["Qwen2"], tmp_path / "out")
    half = open_checkpoint(tmp_path / "out").weights().layers[1]
    full = open_checkpoint(checkpoint("Qwen2", name)).weights().layers[1]
    for one, other in ((half.qkv, full.qkv), (half.proj, full.proj)):
        assert relative_error(effective(one), effective(other)) < 0.15


def effective(linear: Linear) -> Any:
    """The weight as it acts on the input, whatever part of it sits in the pre-quant scale."""
    weight = dequantize(linear)
    if linear.prequant_scaling_factor is None:
        return weight
    return weight * linear.prequant_scaling_factor.astype(np.float32)


def relative_error(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_a_disk_that_is_full_is_a_stage_error(sources: dict[str, Path], tmp_path: Path) -> None:
    """A limit on file size makes writes fail the way a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = recipe(sources["Llama"], format="float16")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(StageError, match="out: the checkpoint cannot be written"):
            run_stage(settings, sources["Llama"], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_smoothquant_alpha_reaches_the_scales(sources: dict[str, Path], tmp_path: Path) -> None:
    for name, alpha in (("half", 0.5), ("full", 1.0)):
        settings = recipe(sources["Llama"], format="int8_sq", smoothquant_alpha=alpha)
        run_stage(settings, sources["Llama"], tmp_path / name)
    half, full = (
        open_checkpoint(tmp_path / name).weights().layers[0].fc for name in ("half", "full")
    )
    assert half.prequant_scaling_factor is not None
    assert full.prequant_scaling_factor is not None
    # alpha 1 is 1 / amax(x), alpha 0.5 is sqrt(amax(w) / amax(x)).
    ratio = half.prequant_scaling_factor.astype(float) ** 2 / full.prequant_scaling_factor
    source = TensorFile(sources["Llama"] / "model.safetensors")
    columns = np.abs(source.read("model.layers.0.mlp.gate_proj.weight")).max(axis=0)
    assert np.allclose(ratio, columns, rtol=5e-3)


def test_a_kv_cache_that_modelopt_would_lose_is_refused(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pattern of TensorRT-LLM's own script: it calibrates, and the export drops the scales."""
    from pipeline.quantize import calibrate, formats

    def old_pattern(section: Any) -> dict[str, Any]:
        config = formats.modelopt_config(section)
        quantizer = config["quant_cfg"].pop("*[kv]_bmm_quantizer")
        for part in "kv":
            config["quant_cfg"][f"*.{part}_proj.output_quantizer"] = quantizer
        return config

    monkeypatch.setattr(calibrate, "modelopt_config", old_pattern)
    settings = recipe(sources["Llama"], format="int8_sq", kv_cache="int8")
    with pytest.raises(StageError, match="kv_cache_quant_algo None where the recipe asks for INT8"):
        run_stage(settings, sources["Llama"], tmp_path / "out")


def test_an_export_of_another_format_is_refused(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight-only INT8 is what ModelOpt 0.37 labels W8A8 by mistake; no label may differ."""
    from pipeline.quantize import calibrate, formats

    wrong = recipe(sources["Llama"], format="fp8").quantize
    monkeypatch.setattr(calibrate, "modelopt_config", lambda _: formats.modelopt_config(wrong))
    with pytest.raises(StageError, match="quant_algo FP8 where the recipe asks for W8A8_SQ"):
        run_stage(recipe(sources["Llama"], format="int8_sq"), sources["Llama"], tmp_path / "out")


def test_weights_that_overflow_float16_are_found(sources: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    loud = tmp_path / "loud"
    loud.mkdir()
    for path in sources["Llama"].iterdir():
        (loud / path.name).write_bytes(path.read_bytes())
    tensors = load_file(loud / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 1e5)
    save_file(tensors, loud / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        StageError,
        match=r"ln_f\.weight has values that are infinite in float16.*bfloat16",
    ):
        run_stage(recipe(loud, format="float16"), loud, tmp_path / "out")


def test_progress_reports_its_whole_total(sources: dict[str, Path], tmp_path: Path) -> None:
    recorder = Recorder()
    settings = recipe(sources["Llama"], format="int4_awq", samples=40)
    facts = run_stage(settings, sources["Llama"], tmp_path / "out", recorder)
    assert recorder.tasks["quantizing to int4_awq"] == [2, 2]  # layers
    assert facts["calibration_texts"] == 32
    assert facts["calibration_tokens"] == 32 * 30
    assert recorder.notes == [
        "AWQ calibrates on 32 of the 40 samples asked for, as TensorRT-LLM does"
    ]
    model = settings.model.model_copy(update={"at_once": "model"})
    whole = recipe(sources["Llama"], format="int8_sq").model_copy(update={"model": model})
    run_stage(whole, sources["Llama"], tmp_path / "whole", recorder)
    assert recorder.tasks["calibrating int8_sq"] == [24, 24]  # texts


def test_standard_output_stays_clean(
    sources: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    settings = recipe(sources["Llama"], format="int8_sq")
    run_stage(settings, sources["Llama"], tmp_path / "out", recorder)
    assert capfd.readouterr().out == ""
    assert recorder.notes == []


def test_dead_rows_get_positive_scales(checkpoint: Any) -> None:
    """ModelOpt writes 1 for a row without weights, so zero can stay an error for the validator."""
    for name in ("int8_sq", "int4_awq"):
        qkv = open_checkpoint(checkpoint("Llama", name)).weights().layers[0].qkv
        assert qkv.weights_scaling_factor is not None
        # q has 256 rows; the first five of k are dead.
        assert np.all(qkv.weights_scaling_factor[256:261] == 1.0)


@pytest.mark.parametrize("name", ["int8_sq", "int4_awq"])
def test_a_model_with_many_dead_heads(name: str, stories_model: Path, tmp_path: Path) -> None:
    """28 of 32 rope pairs of its q and k heads are rows of zeros; the rest must survive."""
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl who liked the park. " * 20)
    calibration = {"text": str(text), "sequence_length": 64}
    settings = recipe(tmp_path, format=name).model_dump(mode="json", by_alias=True)
    settings["quantize"]["calibration"] |= calibration
    run_stage(Recipe.model_validate(settings), stories_model, tmp_path / "out")
    qkv = open_checkpoint(tmp_path / "out").weights().layers[0].qkv
    source = TensorFile(stories_model / "model.safetensors")
    parts = [source.read(f"model.layers.0.self_attn.{part}_proj.weight") for part in "qkv"]
    wanted = np.concatenate(parts).astype(np.float32)
    assert np.all(effective(qkv)[~wanted.any(axis=1)] == 0)
    assert relative_error(effective(qkv), wanted) < (0.02 if name == "int8_sq" else 0.15)


def test_another_process_writes_the_same_bytes(
    sources: dict[str, Path], checkpoint: Any, tmp_path: Path
) -> None:
    """Also with another number of threads: small models are calibrated on one."""
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from tests.integration.quantize_support import matrix_recipe, run_stage\n"
        "torch.set_num_threads(2); source, output = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "for name in sys.argv[3:]:\n"
        "    run_stage(matrix_recipe(source, name), source, output / name)\n"
    )
    names = ("int4_awq", "int8_sq")
    arguments = [str(sources["Qwen2"]), str(tmp_path), *names]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=PROJECT)
    for name in names:
        for file in ("rank0.safetensors", "config.json"):
            expected = (checkpoint("Qwen2", name) / file).read_bytes()
            assert (tmp_path / name / file).read_bytes() == expected


def test_an_empty_calibration_text(sources: dict[str, Path], tmp_path: Path) -> None:
    settings = recipe(sources["Llama"], format="int8_sq").model_copy(deep=True)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    quantize = settings.quantize.model_dump()
    quantize["calibration"]["text"] = str(empty)
    settings = settings.model_validate(settings.model_dump(by_alias=True) | {"quantize": quantize})
    with pytest.raises(UsageError, match=r"empty\.txt: the file holds no text"):
        run_stage(settings, sources["Llama"], tmp_path / "out")


def test_cuda_is_refused_where_there_is_none(sources: dict[str, Path], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    settings = recipe(sources["Llama"], format="int8_sq", device="cuda")
    with pytest.raises(UnsupportedError, match="there is no CUDA device"):
        run_stage(settings, sources["Llama"], tmp_path / "out")

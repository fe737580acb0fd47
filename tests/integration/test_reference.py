"""The torch reference against transformers, and its roundings against ModelOpt's quantizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pipeline.checkpoint import Linear, open_checkpoint
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.models.facts import ModelFacts
from pipeline.reference import load_reference, reference_model
from pipeline.reference.linear import round_to_float8, round_to_int8, whole_linear
from pipeline.reference.source import load_source
from pipeline.targets.openvino.rope import inverse_frequencies
from tests.integration.openvino_support import relative_rms
from tests.integration.quantize_support import ARCHITECTURES, recipe, run_stage, write_source

pytestmark = pytest.mark.filterwarnings(
    # ModelOpt 0.37 was released a week before transformers 4.57.
    "ignore:transformers version .* is incompatible with nvidia-modelopt:UserWarning",
    r"ignore:`?torch\.jit\.\w+`? is deprecated:DeprecationWarning",
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_source(name, folder / name) for name in ARCHITECTURES}


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor) -> np.ndarray:
    found: np.ndarray = model(ids).logits.numpy()
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_floating_point_checkpoint_is_the_rounded_source(
    architecture: str, dtype: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources[architecture]
    run_stage(recipe(source, format=dtype, dtype=dtype), source, tmp_path / "checkpoint")
    expected: Any = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)).float())
    ids = torch.randint(0, 501, (2, 100), generator=torch.Generator().manual_seed(0))
    found = logits(load_reference(tmp_path / "checkpoint"), ids)
    assert relative_rms(found, logits(expected.eval(), ids)) <= 1e-6


def test_generation_with_a_cache_gives_the_same_logits(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources["Qwen3"]
    run_stage(recipe(source, format="int8_sq", samples=8), source, tmp_path / "checkpoint")
    model: Any = load_reference(tmp_path / "checkpoint")
    ids = torch.arange(1, 40)[None]
    with torch.inference_mode():
        past = model(ids[:, :20], use_cache=True).past_key_values
        found = model(ids[:, 20:], past_key_values=past).logits.numpy()
    assert relative_rms(found, logits(model, ids)[:, 20:]) <= 1e-5


@pytest.mark.parametrize("step", [0.0371, 0.25])
def test_int8_rounding_is_modelopts_on_every_element(step: float) -> None:
    from modelopt.torch.quantization.tensor_quant import fake_tensor_quant

    x = torch.randn(400_000, generator=torch.Generator().manual_seed(1)) * 2
    # Halves decide whether ties go to even, and the ends whether -128 is a code.
    x = torch.cat([x, (torch.arange(-140, 140) + 0.5) * step, torch.tensor([-1e4, 1e4])])
    amax = torch.tensor(step) * 127
    expected = fake_tensor_quant(x, amax, None, 8, False, False)
    assert torch.equal(round_to_int8(x, float(torch.tensor(step))), expected)


def test_float8_rounding_is_modelopts_within_the_range() -> None:
    from modelopt.torch.quantization.tensor_quant import fp8_eager

    amax = torch.tensor(3.7)
    x = torch.empty(200_000).uniform_(-3.7, 3.7, generator=torch.Generator().manual_seed(2))
    found = round_to_float8(x, float(amax / 448))
    torch.testing.assert_close(found, fp8_eager(x, amax), rtol=1e-6, atol=0)
    # TensorRT saturates where torch's conversion would give NaN.
    assert round_to_float8(torch.tensor([100.0]), float(amax / 448)).item() == pytest.approx(3.7)


@pytest.mark.parametrize("algo", ["INT8", "FP8"])
def test_a_quantized_kv_cache_is_modelopts(
    algo: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    import modelopt.torch.quantization as mtq

    source = sources["Qwen3"]
    run_stage(recipe(source, format="float16"), source, tmp_path / "checkpoint")
    opened = open_checkpoint(tmp_path / "checkpoint")
    plain: Any = load_reference(tmp_path / "checkpoint")
    ids = torch.randint(0, 501, (2, 100), generator=torch.Generator().manual_seed(0))
    bits: Any = 8 if algo == "INT8" else (4, 3)
    config = {
        "quant_cfg": {
            "default": {"enable": False},
            "*[kv]_bmm_quantizer": {"num_bits": bits, "axis": None, "enable": True},
        },
        "algorithm": "max",
    }
    expected: Any = load_source(source)
    expected.load_state_dict(rounded(expected))
    expected = mtq.quantize(expected, config, lambda model: model(ids))
    layers = []
    for module, layer in zip(expected.model.layers, opened.weights().layers, strict=True):
        quantizers = (module.self_attn.k_bmm_quantizer, module.self_attn.v_bmm_quantizer)
        # The checkpoint has one scale for both, the larger.
        amax = max(float(quantizer.amax) for quantizer in quantizers)
        for quantizer in quantizers:
            quantizer.amax = amax
        scale = amax / (127 if algo == "INT8" else 448)
        layers.append(type(layer)(**{**vars(layer), "kv_cache_scaling_factor": scale}))
    weights = opened.weights()
    weights = type(weights)(**{**vars(weights), "layers": tuple(layers)})
    found: Any = reference_model(weights, opened.facts, algo)
    # On identical input, since a code that was moved by a last bit moves everything behind it. Even
    # so a value between two codes may go either way; one such in FP8 costs a sixteenth of the rest.
    for asked, written, unrounded in zip(
        expected.model.layers, found.model.layers, plain.model.layers, strict=True
    ):
        given, wanted = attention_call(expected, asked.self_attn, ids)
        with torch.inference_mode():
            cost = relative_rms(unrounded.self_attn(**given)[0].numpy(), wanted)
            error = relative_rms(written.self_attn(**given)[0].numpy(), wanted)
        print(f"{algo}: rel-rms {error:.1e}, without rounding {cost:.1e}")
        assert cost > 1e-3
        assert error < cost / 4


@torch.inference_mode()
def attention_call(model: Any, attention: Any, ids: torch.Tensor) -> tuple[dict[str, Any], Any]:
    """What an attention module of a model gets for token ids, and what it answers."""
    calls = []
    hook = attention.register_forward_hook(
        lambda _module, _args, given, output: calls.append((given, output[0].numpy())),
        with_kwargs=True,
    )
    model(ids, use_cache=False)
    hook.remove()
    return calls[0]


@pytest.mark.parametrize(
    ("name", "kv_cache"), [("int8_sq", "int8"), ("fp8", "fp8"), ("w4a8_awq", None)]
)
def test_formats_that_no_cpu_engine_runs_are_computed_too(
    name: str, kv_cache: str | None, sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources["Qwen2"]
    settings = recipe(source, format=name, kv_cache=kv_cache, samples=8)
    run_stage(settings, source, tmp_path / "checkpoint")
    ids = torch.randint(0, 501, (2, 60), generator=torch.Generator().manual_seed(0))
    found = logits(load_reference(tmp_path / "checkpoint"), ids)
    error = relative_rms(found, logits(load_source(source), ids))
    print(f"{name}, KV {kv_cache}: rel-rms to the source {error:.3f}")
    # Quantization costs something, and far less than another model would (1.4).
    assert 1e-3 < error < 0.5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_w4a8_multiplies_by_the_quotient_that_tensorrt_llm_loads(dtype: str) -> None:
    """By hand: models/modeling_utils.py divides the pre-quant scale by the activation scale in the
    model's dtype, the kernel makes FP8 codes of x times the quotient, and ``alpha`` gives their
    product its size.
    """
    import ml_dtypes

    random = np.random.default_rng(4)
    number, float8 = numpy_dtype(dtype), ml_dtypes.float8_e4m3fn
    step, scale_2 = np.float32(0.00217), np.float32(0.0131)
    prequant = random.uniform(0.1, 20, 256).astype(number)
    scales = random.uniform(0.001, 0.05, (8, 2)).astype(np.float32)
    packed = random.integers(-128, 128, (4, 256)).astype(np.int8)
    linear = Linear(
        "l", "W4A8_AWQ", packed, scales, prequant, float(step), weights_scaling_factor_2=scale_2
    )
    x = random.normal(size=(200, 256)).astype(np.float32) * 0.05
    quotient = (prequant.astype(np.float32) / step).astype(number).astype(np.float32)
    codes = np.clip(x * quotient, -448, 448).astype(float8).astype(np.float32)
    loaded = (scales.astype(number).astype(np.float32) / scale_2).astype(number)
    groups = np.repeat(loaded.astype(np.float16).astype(np.float32), 128, axis=1)
    nibbles = np.stack([(packed << 4).astype(np.int8) >> 4, packed >> 4], axis=1).reshape(8, 256)
    weights = (nibbles * groups).astype(float8).astype(np.float32)
    expected = codes @ weights.T * (step * scale_2)
    found = whole_linear(linear)(torch.from_numpy(x)).detach().numpy()
    assert relative_rms(found, expected) <= 1e-6
    # In two steps, without the quotient's rounding, some codes are others.
    once = np.clip(x * prequant.astype(np.float32) / step, -448, 448).astype(float8)
    assert (once.astype(np.float32) != codes).any()


def rounded(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.half().float() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_graphs_frequencies_are_transformers(scaling: Any, head_dim: int) -> None:
    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        head_dim=head_dim,
        rope_theta=500000.0,
        rope_scaling=scaling,
        max_position_embeddings=131072,
    )
    kind = "default" if scaling is None else scaling["rope_type"]
    expected, attention_scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    found = inverse_frequencies(ModelFacts.from_config(config.to_dict(), "config.json"))
    np.testing.assert_allclose(found, expected.numpy(), rtol=5e-7)
    assert attention_scale == 1.0


def test_a_config_of_transformers_5_keeps_its_rope(sources: dict[str, Path]) -> None:
    import json
    import shutil

    source = sources["Llama"]
    copy = source.with_name("Llama, transformers 5")
    shutil.copytree(source, copy)
    config = json.loads((copy / "config.json").read_text())
    theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling")
    config["rope_parameters"] = {"rope_theta": theta, **scaling}
    (copy / "config.json").write_text(json.dumps(config))
    ids = torch.arange(1, 60)[None]
    assert np.array_equal(logits(load_source(copy), ids), logits(load_source(source), ids))

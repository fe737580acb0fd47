"""The format whose weights are rounded by Hessians, from a model to the files of its ranks.

What is written is judged by transformers alone: its own model, with weights that are decoded here
from the bytes of the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import open_checkpoint
from pipeline.errors import StageError
from pipeline.reference import load_reference
from tests.integration.quantize_support import ARCHITECTURES, SIZES, recipe, run_stage, write_source
from tests.integration.test_quantize import assert_same_weights
from tests.unit.test_gptq import to_nearest

GROUP = 64
FUSED = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_source(name, folder / name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def written(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``written(architecture, **changes)``: the folder of the stage, made once."""
    made: dict[str, Path] = {}

    def make(architecture: str, **changes: Any) -> Path:
        key = f"{architecture} {sorted(changes.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoints") / "out"
            settings = recipe(
                sources[architecture], format="int4_gptq", group_size=GROUP, **changes
            )
            run_stage(settings, sources[architecture], made[key])
        return made[key]

    return make


def decoded(folder: Path) -> dict[str, np.ndarray]:
    """float32 weights by transformers' names, nibble by nibble from the one rank's file."""
    from safetensors.numpy import load_file

    tensors, found = load_file(folder / "rank0.safetensors"), {}
    head, kv = SIZES["head_dim"], SIZES["num_key_value_heads"] * SIZES["head_dim"]
    cuts = [SIZES["num_attention_heads"] * head, SIZES["num_attention_heads"] * head + kv]
    for layer in range(SIZES["num_hidden_layers"]):
        for fused, names in FUSED.items():
            name = f"transformer.layers.{layer}.{fused}"
            assert (tensors[f"{name}.prequant_scaling_factor"] == 1).all()
            packed = tensors[f"{name}.weight"].view(np.uint8).astype(np.int16)
            codes = np.stack([packed & 15, packed >> 4], 1).reshape(-1, packed.shape[1])
            codes = np.where(codes > 7, codes - 16, codes)
            scales = tensors[f"{name}.weights_scaling_factor"].astype(np.float16)
            values = codes * np.repeat(scales.astype(np.float32), GROUP, axis=1)
            parts = np.split(values, cuts) if len(names) == 3 else [values]
            for part, own in zip(parts, names, strict=True):
                found[f"model.layers.{layer}.{own}"] = part.astype(np.float32)
    return found


def judge(source: Path, weights: dict[str, np.ndarray], *, half: bool = True) -> Any:
    """Transformers' model of the source, in float32, with other weights for its linears."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        # Buffers, which rope's frequencies are in, stay as they are.
        for parameter in model.parameters() if half else ():
            parameter.copy_(parameter.half())
        for name, values in weights.items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(values))
    return model


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.arange(5, 65).reshape(2, 30), use_cache=False).logits


@pytest.mark.parametrize(
    "architecture",
    [
        "Llama",
        "Qwen2",
        *(pytest.param(name, marks=pytest.mark.proof) for name in ("Mistral", "Qwen3")),
    ],
)
def test_transformers_computes_the_same_with_the_files_weights(
    architecture: str, written: Any, sources: dict[str, Path]
) -> None:
    folder = written(architecture)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": GROUP,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "exclude_modules": ["lm_head"],
    }
    found = logits(judge(sources[architecture], decoded(folder)))
    theirs = logits(load_reference(folder))
    assert float((found - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_a_layer_is_rounded_on_what_the_rounded_layers_before_it_give(
    written: Any, sources: dict[str, Path]
) -> None:
    """o_proj of the last layer, by NumPy, from inputs that transformers gives with those weights.

    The model rounds in float32, without the rounding of norms to float16.
    """
    import torch

    from pipeline.source.lines import read_texts, sample
    from pipeline.source.tokens import load_tokenizer, token_rows
    from tests.unit.test_gptq import written_out

    name, source = "model.layers.1.self_attn.o_proj", sources["Llama"]
    weights = decoded(written("Llama"))
    model = judge(source, weights, half=False)
    seen: list[Any] = []
    model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]).double().numpy())
    )
    texts = sample(read_texts(source / "calibration.txt"), 24, seed=1234)
    with torch.inference_mode():
        for row in token_rows(texts, load_tokenizer(source), 30):
            model(input_ids=torch.tensor([row]), use_cache=False)
    own = judge(source, {}, half=False).get_submodule(name).weight.detach().numpy()
    codes, scales = written_out(own[:24], np.concatenate(seen))
    values = codes * np.repeat(scales, GROUP, axis=1)
    # A weight in the middle of two codes may go to either, and takes later ones with it.
    assert np.mean(np.isclose(values, weights[name][:24], atol=1e-6)) > 0.99


def test_it_is_nearer_to_the_source_than_rounding_to_nearest(
    written: Any, sources: dict[str, Path]
) -> None:
    source = sources["Llama"]
    truth = judge(source, {})
    names = decoded(written("Llama")).keys()
    nearest = {
        name: to_nearest(truth.get_submodule(name).weight.detach().numpy()).astype(np.float32)
        for name in names
    }

    def divergence(weights: dict[str, np.ndarray]) -> float:
        from torch.nn.functional import kl_div, log_softmax

        other = log_softmax(logits(judge(source, weights)), -1)
        own = log_softmax(logits(truth), -1)
        return float(kl_div(other, own, reduction="sum", log_target=True))

    for act_order in (False, True):
        found = decoded(written("Llama", **({"act_order": True} if act_order else {})))
        assert divergence(found) < 0.8 * divergence(nearest)


@pytest.mark.parametrize(("tp", "pp"), [(2, 2), pytest.param(2, 1, marks=pytest.mark.proof)])
def test_ranks_merge_to_the_single_rank_bit_for_bit(tp: int, pp: int, written: Any) -> None:
    """Qwen2's embeddings are tied and its q, k and v have biases."""
    parts = open_checkpoint(written("Qwen2", tp=tp, pp=pp)).weights()
    assert_same_weights(parts, open_checkpoint(written("Qwen2")).weights())


def test_the_same_model_and_text_give_the_same_bytes(
    written: Any, sources: dict[str, Path], tmp_path: Path
) -> None:
    settings = recipe(sources["Llama"], format="int4_gptq", group_size=GROUP)
    run_stage(settings, sources["Llama"], tmp_path / "again")
    for file in written("Llama").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_kv_cache_is_measured_on_the_rounded_weights(
    written: Any, sources: dict[str, Path]
) -> None:
    """Codes and scales are those without it; its ranges cover what the rounded v_proj gives."""
    import torch

    with_cache, without = (
        open_checkpoint(written("Llama", **keys)).weights() for keys in ({"kv_cache": "int8"}, {})
    )
    model = judge(sources["Llama"], decoded(written("Llama")), half=False)
    largest: dict[int, float] = {}
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.v_proj.register_forward_hook(
            lambda _m, _i, out, number=number: largest.update({number: float(out.abs().max())})
        )
    with torch.inference_mode():
        model(input_ids=torch.arange(1, 31)[None], use_cache=False)
    for number, (one, other) in enumerate(zip(with_cache.layers, without.layers, strict=True)):
        assert np.array_equal(one.qkv.weight, other.qkv.weight)
        assert one.qkv.weights_scaling_factor is not None
        assert other.qkv.weights_scaling_factor is not None
        assert np.array_equal(one.qkv.weights_scaling_factor, other.qkv.weights_scaling_factor)
        assert one.kv_cache_scaling_factor is not None
        assert other.kv_cache_scaling_factor is None
        assert 0.5 * largest[number] < 127 * one.kv_cache_scaling_factor < 20 * largest[number]


def test_large_models_are_rounded_in_their_own_precision(
    written: Any, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are then bfloat16 in memory, and codes and scales exact all the same."""
    from pipeline.quantize import loading

    monkeypatch.setattr(loading, "FLOAT32_LIMIT_BYTES", 0)
    settings = recipe(
        sources["Qwen3"], format="int4_gptq", group_size=GROUP, dtype="bfloat16", kv_cache="fp8"
    )
    run_stage(settings, sources["Qwen3"], tmp_path / "out")
    half = open_checkpoint(tmp_path / "out")
    assert half.config.dtype == "bfloat16"
    scales = half.weights().layers[1].proj.weights_scaling_factor
    assert scales is not None
    assert np.array_equal(scales, scales.astype(half.weights().ln_f.dtype).astype(np.float32))


def test_activations_that_are_not_finite_name_the_linear(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = write_source("Llama", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][3] = np.inf
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    settings = recipe(source, format="int4_gptq", group_size=GROUP)
    with pytest.raises(StageError, match=r"model\.layers\.1\.self_attn\.q_proj: the inputs of a"):
        run_stage(settings, source, tmp_path / "out")


@pytest.mark.proof
def test_groups_are_searched_for_as_those_of_awq(sources: dict[str, Path], tmp_path: Path) -> None:
    settings = recipe(sources["Llama"], format="int4_gptq", search={"tokens": 200})
    found = run_stage(settings, sources["Llama"], tmp_path / "out")["search"]
    assert [point["value"] for point in found["curve"]] == [64, 128]
    chosen = min(found["curve"], key=lambda point: point["kl_divergence"])["value"]
    assert found["chosen"] == chosen
    assert open_checkpoint(tmp_path / "out").config.quantization.group_size == chosen

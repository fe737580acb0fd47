"""LoRA adapters against PEFT's definition, upstream's layout and the pre-flight's rules.

PEFT adds ``lora_alpha / r * B @ A`` to a weight (``/ sqrt(r)`` with rslora). The layout is that of
upstream's examples/hf_lora_convert.py and is taken apart by hand here.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import RecipeError, UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.targets import get_target
from pipeline.targets.tensorrt.gpus import GIB
from pipeline.targets.tensorrt.lora.adapter import AdapterError, misfits, read_adapter
from pipeline.targets.tensorrt.lora.convert import config_file, weights_file
from pipeline.targets.tensorrt.plan.lines import preview_lines
from pipeline.targets.tensorrt.plan.preview import refuse_errors
from tests.unit.triton import tensorrt
from tests.unit.triton.by_target import engine_model

from .recipes import found, model, preview, recipe

LORA, ADAPTERS = "compile.tensorrt.lora", "serve.lora_adapters"
PREFIX = "base_model.model.model.layers."
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": None,
    "rank_pattern": {},
    "use_dora": False,
}
# Linears of a model with 4 hidden features, 1 KV head of 2, and an MLP of 6: (out, in).
SHAPES = {"self_attn.q_proj": (4, 4), "self_attn.v_proj": (2, 4), "mlp.down_proj": (4, 6)}


def tensors(
    layers: int = 2, rank: int = 2, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        f"{PREFIX}{layer}.{name}.lora_{half}.weight": torch.randn(*shape).to(dtype)
        for layer in range(layers)
        for name, (rows, columns) in SHAPES.items()
        for half, shape in (("A", (rank, columns)), ("B", (rows, rank)))
    }


def write(folder: Path, weights: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors() if weights is None else weights, folder / "adapter_model.safetensors")
    return folder


def arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(io.BytesIO(weights_file(folder))), np.load(io.BytesIO(config_file(folder)))


def test_a_row_by_hand(tmp_path: Path) -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    b = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
    name = f"{PREFIX}3.self_attn.v_proj.lora_"
    folder = write(tmp_path / "a", {f"{name}A.weight": a, f"{name}B.weight": b})
    weights, config = arrays(folder)
    # lora_alpha 8 of rank 2 makes B four times as large; A, then B, both row by row.
    assert weights.dtype == np.float16
    assert weights.tolist() == [[[1, 2, 3, 4, 5, 6, 7, 8, 2, -4, 8, 1]]]
    # attn_v is 3 in LoraManager.LORA_MODULE_IDS.
    assert config.dtype == np.int32
    assert config.tolist() == [[[3, 3, 2]]]


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 4.0), ({"use_rslora": True}, 8 / 2**0.5), ({"lora_alpha": 3}, 1.5)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_row_is_what_peft_adds(
    changes: dict[str, Any], scale: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    given = tensors(dtype=dtype)
    weights, config = arrays(write(tmp_path / "a", given, **changes))
    ids = {1: "self_attn.q_proj", 3: "self_attn.v_proj", 6: "mlp.down_proj"}
    assert sorted(map(tuple, config[0].tolist())) == sorted(
        (id_, layer, 2) for id_ in ids for layer in range(2)
    )
    # The longest row is the MLP's, (6 + 4) x 2; the others end with zeros.
    assert weights.shape == (1, 6, 20)
    for (id_, layer, rank), row in zip(config[0].tolist(), weights[0], strict=True):
        name = ids[id_]
        rows, columns = SHAPES[name]
        a = row[: rank * columns].astype(np.float64).reshape(rank, columns)
        b = row[rank * columns : rank * (columns + rows)].astype(np.float64).reshape(rows, rank)
        assert not row[rank * (columns + rows) :].any()
        source_a, source_b = (
            given[f"{PREFIX}{layer}.{name}.lora_{half}.weight"].double() for half in "AB"
        )
        wanted = scale * (source_b @ source_a).numpy()
        np.testing.assert_allclose(b @ a, wanted, rtol=2e-3, atol=0.02)


def test_a_value_beyond_float16_is_refused(tmp_path: Path) -> None:
    weights = tensors()
    next(value for key, value in weights.items() if "lora_B" in key)[0, 0] = 20000.0
    with pytest.raises(AdapterError, match="values that float16 cannot hold"):
        weights_file(write(tmp_path / "a", weights))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, r"not the configuration of a LoRA adapter"),
        ({"use_dora": True}, r"use_dora True, which TensorRT-LLM does not compute"),
        ({"bias": "all"}, r"bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 4}}, r"rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, r"alpha_pattern"),
        ({"r": 0}, r"r 0, which is not a rank"),
        ({"r": 4}, r"shapes \[2, 4\] and \[4, 2\], not \[4, in\] and \[out, 4\]"),
        ({"lora_alpha": None}, r"lora_alpha None, which is not a number"),
    ],
)
def test_configurations_that_would_compute_something_else(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=reason):
        read_adapter(write(tmp_path / "a", **changes))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("base_model.model.lm_head.lora_A.weight", r"it changes base_model\.model\.lm_head"),
        (f"{PREFIX}0.self_attn.q_norm.lora_A.weight", r"it changes .*q_norm"),
        (f"{PREFIX}0.self_attn.q_proj.lora_magnitude_vector", r"it changes .*magnitude"),
        (f"{PREFIX}7.self_attn.q_proj.lora_A.weight", r"q_proj of layer 7 has lora_A alone"),
    ],
)
def test_tensors_that_upstreams_script_leaves_out(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=reason):
        read_adapter(write(tmp_path / "a", {**tensors(), name: torch.zeros(2, 4)}))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read: No such file"):
        read_adapter(tmp_path)
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors cannot be read"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(AdapterError, match="is not complete"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="is not JSON"):
        read_adapter(folder)


def small_model(**changes: int) -> ModelFacts:
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2}
    sizes |= {"intermediate_size": 6, "num_hidden_layers": 2}
    return model("llama-3.1-8b", **(sizes | changes))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_out_of_an_adapters_folder_is_not_followed(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(AdapterError, match=f"{name} is a link out of its folder, to"):
        read_adapter(folder)


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    adapter = read_adapter(write(tmp_path / "a"))
    assert list(misfits(adapter, small_model())) == []
    assert list(misfits(adapter, small_model(num_hidden_layers=1))) == [
        "it has a layer 1, and the model's are 0 to 0"
    ]
    (problem,) = misfits(adapter, small_model(intermediate_size=8))
    assert problem == "its down_proj maps 6 to 4 features, the model's 8 to 4 features"


def fitting(folder: Path, rank: int = 2, **changes: Any) -> Path:
    """One that changes q_proj of the first layer of Llama-3.1-8B."""
    name = f"{PREFIX}0.self_attn.q_proj.lora_"
    weights = {
        f"{name}A.weight": torch.zeros(rank, 4096),
        f"{name}B.weight": torch.zeros(4096, rank),
    }
    return write(folder, weights, r=rank, **changes)


def refuse(folder: Path, *overrides: str) -> None:
    refuse_errors(recipe(folder, *overrides), model("llama-3.1-8b"))


def test_an_engine_with_adapters(tmp_path: Path) -> None:
    adapter = fitting(tmp_path / "a")
    plain = preview(tmp_path, "compile.gpu=L40S")
    result = preview(
        tmp_path, f"{LORA}={{max_rank: 16}}", f"{ADAPTERS}=[{adapter}]", "compile.gpu=L40S"
    )
    assert not [f for f in result.effective.findings if f.severity == "error"]
    flags = result.requested.flags()
    assert flags[flags.index("--lora_plugin") + 1] == "auto"
    place = flags.index("--lora_target_modules")
    assert flags[place + 1 : place + 6] == ["attn_q", "attn_k", "attn_v", "--max_lora_rank", "16"]
    assert not [flag for flag in plain.requested.flags() if "lora" in flag]
    # By hand: q has 4096 + 4096 features, k and v 4096 + 1024 each; a row of the cache is 5120
    # wide, q takes two. 4 rows x 5120 x rank 16 x 32 layers x 2 bytes.
    assert result.memory.lora_adapter == 4 * 5120 * 16 * 32 * 2
    assert plain.memory.gpu_memory is not None
    free = plain.memory.gpu_memory - plain.memory.fixed
    assert result.memory.lora_cache == int(free * 0.05)
    assert result.memory.kv_pool == pytest.approx((free - int(free * 0.05)) * 0.9, rel=1e-3)
    lines = preview_lines(result)
    assert any("lora_target_modules attn_q, attn_k, attn_v, max_lora_rank 16" in x for x in lines)
    assert any(line.startswith("  LoRA adapters") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([f"{LORA}=null"], "the engine is built without LoRA"),
        ([f"{LORA}={{max_rank: 1}}"], "has rank 2, and the engine takes 1"),
        ([f"{LORA}={{target_modules: [attn_dense]}}"], "changes attn_q"),
        (["quantize.format=bfloat16"], "LoRA needs a float16 model, and this one is bfloat16"),
        (["quantize.format=int8_sq"], "LoRA does not go with W8A8_SQ_PER_CHANNEL"),
        (
            ["compile.gpu=L4", f"{LORA}.max_rank=1024"],
            "would not load: its cache does not hold one adapter",
        ),
    ],
)
def test_what_adapters_do_not_go_with(overrides: list[str], reason: str, tmp_path: Path) -> None:
    adapter = fitting(tmp_path / "a")
    with pytest.raises(UnsupportedError, match=reason):
        refuse(tmp_path, f"{LORA}={{}}", f"{ADAPTERS}=[{adapter}]", *overrides)


def test_an_adapter_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    other = write(tmp_path / "a")
    modules = "[attn_q, attn_k, attn_v, mlp_4h_to_h]"
    with pytest.raises(UnsupportedError, match=r"a cannot be served.*Its q_proj maps 4 to 4"):
        refuse(tmp_path, f"{LORA}={{target_modules: {modules}}}", f"{ADAPTERS}=[{other}]")
    with pytest.raises(UnsupportedError, match=r"missing cannot be served.*cannot be read"):
        refuse(tmp_path, f"{LORA}={{}}", f"{ADAPTERS}=[{tmp_path / 'missing'}]")


def test_an_engine_for_adapters_without_any_is_a_warning(tmp_path: Path) -> None:
    finding = found(preview(tmp_path, f"{LORA}={{}}"), "built for adapters, and there are none")
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{target_modules: [attn_q, attn_v]}", "attn_q, attn_k, attn_v go together"),
        ("{target_modules: [attn_dense, attn_dense]}", "names a linear twice"),
        ("{target_modules: []}", "at least 1 item"),
        ("{target_modules: [q_proj]}", "attn_q"),
    ],
)
def test_target_modules_that_no_engine_has(value: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=reason):
        recipe(tmp_path, f"{LORA}={value}")


def test_the_cpu_target_refuses_adapters(tmp_path: Path) -> None:
    settings = recipe(tmp_path, "compile.target=openvino", f"{ADAPTERS}=[{tmp_path}]")
    with pytest.raises(UnsupportedError, match="no lora_adapters"):
        get_target("openvino").check(settings, model("llama-3.1-8b"))


def engine(**lora: Any) -> dict[str, Any]:
    config = tensorrt.engine_config()
    config["build_config"]["plugin_config"]["lora_plugin"] = "auto"
    config["build_config"]["lora_config"] = {
        "lora_dir": [],
        "max_lora_rank": 64,
        "lora_target_modules": ["attn_q", "attn_k", "attn_v"],
        **lora,
    }
    return config


def with_adapters(folder: Path, count: int) -> Any:
    folders = [str(write(folder / str(number))) for number in range(count)]
    plain = tensorrt.recipe(lora_adapters=folders)
    section = plain.compile.model_dump(exclude_unset=True)
    section["tensorrt"] = {"lora": {}}
    values = plain.model_dump(by_alias=True, exclude_unset=True) | {"compile": section}
    return type(plain).model_validate(values)


def test_the_backend_loads_the_adapters_when_it_starts(tmp_path: Path) -> None:
    built = engine_model(with_adapters(tmp_path, 2), engine())
    assert built.parameters["lora_prefetch_dir"] == "/models/tensorrt_llm/1/lora"
    assert built.parameters["lora_cache_max_adapter_size"] == "64"
    assert built.parameters["lora_cache_optimal_adapter_size"] == "64"
    assert sorted(built.files) == [
        f"lora/{id_}/model.lora_{name}.npy" for id_ in (1, 2) for name in ("config", "weights")
    ]
    assert list(built.lora_task_ids) == [1, 2]
    # Two adapters of the size that the plan counts, above, fit the default of 1 GiB: q takes two
    # rows of 5120. Of sixteen there is room for twice as many.
    assert built.parameters["lora_cache_host_memory_bytes"] == str(GIB)
    many = engine_model(with_adapters(tmp_path, 16), engine())
    assert int(many.parameters["lora_cache_host_memory_bytes"]) == 16 * 4 * 5120 * 64 * 32 * 2 * 2


def test_adapters_are_converted_for_the_repository(tmp_path: Path) -> None:
    built = engine_model(with_adapters(tmp_path, 1), engine())
    content = built.files["lora/1/model.lora_weights.npy"](tmp_path)
    assert np.load(io.BytesIO(content)).shape == (1, 6, 20)
    (tmp_path / "0" / "adapter_model.safetensors").unlink()
    with pytest.raises(UnsupportedError, match=r"cannot be served.*cannot be read"):
        built.files["lora/1/model.lora_weights.npy"](tmp_path)

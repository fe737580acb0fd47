"""The table of architectures against transformers: its sources, its classes, and their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from pipeline.errors import UnsupportedError
from pipeline.models.architectures import ARCHITECTURES, Architecture
from pipeline.models.config_keys import ELSEWHERE, INERT, SHARED_FIXED, fixed_keys
from pipeline.models.facts import ModelFacts
from pipeline.source.snapshot import expected_tensors

from .config_scan import class_reads, shared_reads
from .quantize_support import ARCHITECTURES as COMPUTED

ROWS = list(ARCHITECTURES.values())
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 120,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IDS = torch.randint(3, 120, (1, 40), generator=torch.Generator().manual_seed(0))
# Each family by its model_type, and what tells it from Llama: a key of its config.json that decides
# the arithmetic or, where the keys are Llama's, a tensor.
FOREIGN = {
    "apertus": "hidden_act",
    "arcee": "hidden_act",
    "bitnet": "hidden_act",
    "cohere": "logit_scale",
    "cohere2": "logit_scale",
    "dots1": "n_routed_experts",
    "ernie4_5": "use_bias",
    "exaone4": "sliding_window_pattern",
    "gemma": "hidden_activation",
    "gemma2": "attn_logit_softcapping",
    "gemma3_text": "query_pre_attn_scalar",
    "glm": "partial_rotary_factor",
    "glm4": "partial_rotary_factor",
    "gpt_oss": "num_local_experts",
    "granite": "attention_multiplier",
    "granitemoe": "num_local_experts",
    "lfm2": "conv_L_cache",
    "ministral": "sliding_window",
    "mixtral": "num_local_experts",
    "nemotron": "norm_eps",
    "olmo": "clip_qkv",
    "olmo2": "model.layers.0.post_feedforward_layernorm.weight",
    "olmo3": "sliding_window",
    "phi": "layer_norm_eps",
    "phi3": "model.layers.0.self_attn.qkv_proj.weight",
    "qwen2_moe": "num_experts",
    "qwen3_moe": "num_experts",
    "seed_oss": "attention_out_bias",
    "smollm3": "no_rope_layers",
    "stablelm": "use_parallel_residual",
    "starcoder2": "use_bias",
}


def _config(model_type: str, **keys: Any) -> Any:
    return CONFIG_MAPPING[model_type](**SIZES | keys)


def _model(model_type: str, **keys: Any) -> Any:
    """A model whose every parameter depends on nothing but its shape."""
    model = transformers.AutoModelForCausalLM.from_config(_config(model_type, **keys)).eval()
    for parameter in model.parameters():
        generator = torch.Generator().manual_seed(parameter.numel())
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_lists_what_the_classes_read_and_their_defaults(row: Architecture) -> None:
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[row.model_type] == row.name
    assert dict(row.reads) == class_reads(row.model_type)
    fast = f"{row.tokenizer_class}Fast" if row.tokenizer_class else None
    assert TOKENIZER_MAPPING_NAMES.get(row.model_type, (None, None))[1] == fast


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_key_that_is_read_is_understood_or_fixed_or_inert(row: Architecture) -> None:
    read = shared_reads(row.model_type) | row.reads.keys()
    kinds = (row.understood, fixed_keys(row).keys(), INERT)
    for key in read:
        assert sum(key in kind for kind in kinds) == 1, key


def test_nothing_is_listed_that_no_class_reads() -> None:
    types = [row.model_type for row in ROWS] + list(FOREIGN)
    read = {key for name in types for key in (*class_reads(name), *shared_reads(name))}
    assert read >= SHARED_FIXED.keys() | INERT


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fixed_key_has_the_default_of_its_class(row: Architecture) -> None:
    config = CONFIG_MAPPING[row.model_type]()
    for key, values in fixed_keys(row).items():
        assert getattr(config, key, None) in values, key


def _other(key: str, value: Any) -> Any:
    """Another value of an inert key, of the kind that its class takes."""
    special = {
        "problem_type": "regression",
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "label2id": {"a": 0, "b": 1, "c": 2},
        "num_labels": 3,
        "task_specific_params": {"a": {"b": 1}},
        "architectures": ["OtherForCausalLM"],
        "attn_implementation": "eager",
        "dtype": "float32",
        "torch_dtype": "float32",
        "distributed_config": None,
    }
    if key in special:
        return special[key]
    if isinstance(value, bool):
        return not value
    if key.endswith(("dropout", "pdrop")):
        return 0.5
    if isinstance(value, int | float):
        return value + 3
    return "other" if key in ("tokenizer_class", "prefix", "transformers_version") else 7


@pytest.mark.filterwarnings("ignore:Passing `gradient_checkpointing`")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_inert_keys_do_not_change_the_logits(row: Architecture) -> None:
    defaults = vars(CONFIG_MAPPING[row.model_type]())
    # What a generation takes from them is checked as one whole, and is not the model's.
    generation = transformers.PretrainedConfig._get_global_generation_defaults().keys()
    read = shared_reads(row.model_type) | row.reads.keys()
    changed = {key: _other(key, defaults.get(key)) for key in (INERT & read) - generation}
    assert changed.keys() >= {"eos_token_id", "initializer_range", "use_cache", "is_decoder"}
    with torch.inference_mode():
        logits = _model(row.model_type, **changed)(IDS).logits
        torch.testing.assert_close(logits, _model(row.model_type)(IDS).logits)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_running_model_reads_no_key_that_the_table_lacks(
    row: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    config_class = CONFIG_MAPPING[row.model_type]
    plain = config_class.__getattribute__

    def recording(self: Any, key: str) -> Any:
        asked.add(key)
        return plain(self, key)

    config = _config(row.model_type)
    monkeypatch.setattr(config_class, "__getattribute__", recording)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.inference_mode():
        first = model(IDS)
        model(IDS[:, :1], past_key_values=first.past_key_values)
    assert {"hidden_size", "rope_theta", "rms_norm_eps"} <= asked
    own = {*dir(transformers.PretrainedConfig), *dir(torch)}
    keys = {key for key in asked if not key.startswith("_")} - own
    composite = {"decoder", "generator", "text_encoder", "text_config"}
    assert keys - composite <= row.understood | fixed_keys(row).keys() | INERT | ELSEWHERE


def test_the_cache_minds_a_window_whatever_the_class() -> None:
    """Why a window is refused where the class of the model knows none."""
    options = {"max_new_tokens": 12, "do_sample": False}
    windowed = _model("llama", sliding_window=8)
    ids = windowed.generate(IDS, **options)
    assert not torch.equal(ids, windowed.generate(IDS, use_cache=False, **options))
    assert not torch.equal(ids, _model("llama").generate(IDS, **options))


@pytest.fixture
def claimed(request: pytest.FixtureRequest) -> Iterator[Architecture]:
    """A row for a foreign family that claims all that the row of a supported one does."""
    base = ARCHITECTURES["LlamaForCausalLM"]
    model_type = request.param
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    row = replace(base, name=name, model_type=model_type, reads=class_reads(model_type))
    ARCHITECTURES[name] = row
    yield row
    del ARCHITECTURES[name]


@pytest.mark.parametrize("claimed", FOREIGN, indirect=True)
@pytest.mark.parametrize("written", ["as saved", "sizes only"])
def test_a_foreign_family_that_claims_to_be_a_llama_is_refused(
    claimed: Architecture, written: str
) -> None:
    config = _config(claimed.model_type)
    file = {**SIZES, "architectures": [claimed.name]}
    if written == "as saved":
        file = {**config.to_dict(), "architectures": [claimed.name]}
    telling = FOREIGN[claimed.model_type]
    if "." not in telling:
        with pytest.raises(UnsupportedError, match=rf"\b{telling}\b") as caught:
            ModelFacts.from_config(file, "config.json")
        assert caught.value.why
        return
    # The keys are Llama's; the snapshot's tensors are not.
    facts = ModelFacts.from_config(file, "config.json")
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    there = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert telling in there.keys() - expected_tensors(facts).keys()


@pytest.mark.parametrize("model_type", FOREIGN)
def test_a_row_that_copies_the_keys_of_another_does_not_pass(model_type: str) -> None:
    """The first test of this file fails for it, and a model says its type."""
    llama = ARCHITECTURES["LlamaForCausalLM"]
    assert dict(llama.reads) != class_reads(model_type)
    file = {**_config(model_type).to_dict(), "architectures": [llama.name]}
    with pytest.raises(UnsupportedError, match=f"model_type is '{model_type}' beside LlamaFor"):
        ModelFacts.from_config(file, "config.json")


def test_a_window_is_not_claimed_for_a_class_that_knows_none() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM reads no sliding_window"):
        replace(ARCHITECTURES["LlamaForCausalLM"], windows="all")


def test_every_row_is_among_the_models_that_are_computed_and_compared() -> None:
    """Keys and tensors do not tell everything: Helium differs from Llama in neither."""
    assert {f"{name}ForCausalLM" for name in COMPUTED} == ARCHITECTURES.keys()

"""The source stage: only a whole safetensors checkpoint gets through."""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError, SourceError
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.source import hub
from pipeline.stages import source
from pipeline.stages.base import StageContext

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


# A Llama of CONFIG's sizes, by hand.
TENSORS = {
    "model.embed_tokens.weight": [32, 8],
    "model.layers.0.input_layernorm.weight": [8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.self_attn.k_proj.weight": [8, 8],
    "model.layers.0.self_attn.v_proj.weight": [8, 8],
    "model.layers.0.self_attn.o_proj.weight": [8, 8],
    "model.layers.0.post_attention_layernorm.weight": [8],
    "model.layers.0.mlp.gate_proj.weight": [16, 8],
    "model.layers.0.mlp.up_proj.weight": [16, 8],
    "model.layers.0.mlp.down_proj.weight": [8, 16],
    "model.norm.weight": [8],
    "lm_head.weight": [32, 8],
}
PARAMETERS = 2 * 32 * 8 + 4 * 8 * 8 + 3 * 16 * 8 + 3 * 8


def safetensors_bytes(
    tensors: dict[str, list[int]] = TENSORS,
    dtype: str = "F32",
    dtypes: Mapping[str, str] | None = None,
) -> bytes:
    """A valid file of zeros, by the format's own definition; ``dtypes`` are exceptions."""
    header, position = {}, 0
    for name, shape in tensors.items():
        own = (dtypes or {}).get(name, dtype)
        end = position + math.prod(shape) * {"F32": 4, "BF16": 2, "I8": 1}[own]
        header[name] = {"dtype": own, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(position)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(safetensors_bytes())
    return directory


def _recipe(tmp_path: Path, model: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"schema: 1\nname: t\nmodel: {{source: '{model}'}}\nquantize: {{format: fp16}}\n"
    )
    return load_recipe(path)


def _run(tmp_path: Path, model: Path) -> tuple[dict[str, Any], list[str]]:
    output = tmp_path / "output"
    output.mkdir()
    recipe = _recipe(tmp_path, str(model))
    facts = source.run(StageContext(recipe, {}, output, Silent()))
    return facts, sorted(path.name for path in output.iterdir())


def test_a_snapshot_is_copied_without_strangers(tmp_path: Path, model: Path) -> None:
    for stranger in ("optimizer.pt", "notes.txt", "modeling_evil.py", "pytorch_model.bin"):
        (model / stranger).write_text("x")
    facts, names = _run(tmp_path, model)
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert facts["parameters"] == PARAMETERS
    assert facts["dtypes"] == ["F32"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_with_the_reason(
    tmp_path: Path, model: Path, name: str
) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(SourceError, match=f"{name}, which is refused.*run any code.*Convert"):
        _run(tmp_path, model)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[:-3], "end at byte"),
        (lambda data: data + b"x", "end at byte"),
        (lambda data: data[:20], "header claims"),
        (lambda data: struct.pack("<Q", 1 << 60) + data[8:], "header claims"),
        (lambda data: data[:8] + b"!" + data[9:], "damaged"),
        (lambda _data: b"", "damaged"),
    ],
)
def test_damaged_weights_are_found_before_any_work(
    tmp_path: Path, model: Path, damage, expected: str
) -> None:
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=expected) as caught:
        _run(tmp_path, model)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.md"),
    ],
)
@pytest.mark.parametrize("kind", ["absolute", "relative", "through a folder"])
def test_a_link_out_of_a_models_folder_is_not_followed(
    tmp_path: Path, model: Path, name: str, kind: str
) -> None:
    secret = tmp_path / "secret"
    there = (model / name).read_bytes() if (model / name).exists() else b"{}"
    secret.mkdir()
    (secret / name).write_bytes(there)
    (model / name).unlink(missing_ok=True)
    (model / "deep").symlink_to(secret)
    target = {
        "absolute": str(secret / name),
        "relative": f"../secret/{name}",
        "through a folder": f"deep/{name}",
    }[kind]
    (model / name).symlink_to(target)
    with pytest.raises(
        RecipeError, match=rf"{name} is a link out of the model's folder, to .*secret"
    ):
        _run(tmp_path, model)
    assert list((tmp_path / "output").iterdir()) == []


def test_links_within_a_model_and_the_hubs_cache_are_followed(tmp_path: Path, model: Path) -> None:
    """The cache's layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    (model / "tokenizer.json").rename(model / "real.json")
    (model / "tokenizer.json").symlink_to("real.json")
    linked = tmp_path / "linked"
    linked.symlink_to(model)
    assert "tokenizer.json" in _run(tmp_path, linked)[1]
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        (cache / "blobs" / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (tmp_path / "again").mkdir()
    names = _run(tmp_path / "again", snapshot)[1]
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    (tmp_path / "secret").write_text("{}")
    (snapshot / "generation_config.json").symlink_to("../../../secret")
    (tmp_path / "third").mkdir()
    with pytest.raises(RecipeError, match=r"generation_config\.json is a link out"):
        _run(tmp_path / "third", snapshot)


def test_a_strangers_link_beside_the_model_is_nobodys_concern(tmp_path: Path, model: Path) -> None:
    (model / "original").symlink_to("/")
    (model / "notes.txt").symlink_to("/etc/hostname")
    assert _run(tmp_path, model)[1] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_file_without_read_permission_is_named(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root reads everything, so the refusal of the kernel is played.
    def refused(_source: Path, _target: Path, _on_bytes: object, **_how: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source, "take", refused)
    with pytest.raises(SourceError, match=r"config\.json: a model file cannot be read.*permission"):
        _run(tmp_path, model)


def test_a_missing_shard_is_named(tmp_path: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    _write_index(
        model, dict.fromkeys(TENSORS, "model-1.safetensors") | {"b": "model-2.safetensors"}
    )
    with pytest.raises(
        SourceError, match=r"1 tensors of the index are in no file, the first is b of model-2\."
    ):
        _run(tmp_path, model)


def _shards(model: Path) -> list[str]:
    """A second, sharded set of the weights."""
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    half = len(TENSORS) // 2
    files = dict(zip(names, (list(TENSORS)[:half], list(TENSORS)[half:]), strict=True))
    for name, tensors in files.items():
        (model / name).write_bytes(safetensors_bytes({t: TENSORS[t] for t in tensors}))
    _write_index(model, {tensor: name for name, tensors in files.items() for tensor in tensors})
    return names


def test_an_older_save_beside_a_newer_one_is_ambiguous(tmp_path: Path, model: Path) -> None:
    _shards(model)
    with pytest.raises(
        SourceError,
        match=r"two sets of weights: model\.safetensors, and 2 files of model\.safetensors\.index"
        r"\.json.*transformers takes model\.safetensors.*Remove model\.safetensors\.index\.json",
    ):
        _run(tmp_path, model)


def test_an_index_that_is_left_without_its_files_is_not_taken(tmp_path: Path, model: Path) -> None:
    for name in _shards(model):
        (model / name).unlink()
    assert _run(tmp_path, model)[1] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_shard_that_the_index_does_not_name_is_left_out_and_said(
    tmp_path: Path, model: Path
) -> None:
    names = _shards(model)
    (model / "model.safetensors").rename(model / "model-00003-of-00003.safetensors")
    recipe, notes = _recipe(tmp_path, str(model)), Notes()
    output = tmp_path / "output"
    output.mkdir()
    source.run(StageContext(recipe, {}, output, notes))
    assert [path.name for path in sorted(output.glob("*.safetensors"))] == names
    assert notes.texts == [
        (
            "left out, as no index names it and transformers does not read it: "
            "model-00003-of-00003.safetensors"
        )
    ]


class Notes(Silent):
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_a_variant_is_named_when_it_is_all_there_is(tmp_path: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.fp16.safetensors")
    with pytest.raises(SourceError, match=r"There is model\.fp16\.safetensors, and transformers"):
        _run(tmp_path, model)


def test_an_adapter_is_no_model_and_makes_one_ambiguous(tmp_path: Path, model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"adapter_config\.json lies beside.*peft.*merge_and"):
        _run(tmp_path, model)
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"this is an adapter.*merge_and_unload\(\)"):
        source.run(StageContext(_recipe(tmp_path, str(model)), {}, tmp_path, Silent()))


def test_weights_that_config_json_names_are_refused(tmp_path: Path, model: Path) -> None:
    config = CONFIG | {"transformers_weights": "model.other.safetensors"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"names 'model\.other\.safetensors'.*save_pretrained"):
        _run(tmp_path, model)


def test_an_end_id_that_is_none_is_refused_at_the_source(tmp_path: Path, model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": 32}')
    with pytest.raises(SourceError, match=r"eos_token_id is 32\. The last token .* is 31"):
        _run(tmp_path, model)


@pytest.mark.parametrize(("main", "expected"), [("BF16", "bfloat16"), ("F32", "float32")])
def test_the_dtype_of_most_weights_is_a_fact(
    tmp_path: Path, model: Path, main: str, expected: str
) -> None:
    norms = {name for name in TENSORS if "norm" in name}
    data = safetensors_bytes(dtype="F32", dtypes=dict.fromkeys(TENSORS.keys() - norms, main))
    (model / "model.safetensors").write_bytes(data)
    facts, _ = _run(tmp_path, model)
    assert facts["dtype"] == expected
    assert facts["dtypes"] == sorted({"F32", main})


def test_only_the_weights_that_transformers_reads_are_taken(tmp_path: Path, model: Path) -> None:
    half = len(TENSORS) // 2
    shards = dict(list(TENSORS.items())[:half]), dict(list(TENSORS.items())[half:])
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    for name, shard in zip(names, shards, strict=True):
        (model / name).write_bytes(safetensors_bytes(shard))
    _write_index(model, {t: n for n, s in zip(names, shards, strict=True) for t in s})
    facts, found = _run(tmp_path, model)
    assert [name for name in found if name.endswith(".safetensors")] == names
    assert facts["parameters"] == PARAMETERS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "has no weight_map"),
        ('{"weight_map": {"a": "../../elsewhere.safetensors"}}', "leads out of the directory"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, model: Path, content: str, reason: str) -> None:
    (model / "model.safetensors.index.json").write_text(content)
    with pytest.raises(SourceError, match=rf"index of the weights is damaged.*{reason}"):
        _run(tmp_path, model)


def _write_index(model: Path, weight_map: dict[str, str]) -> None:
    text = json.dumps({"weight_map": weight_map})
    (model / "model.safetensors.index.json").write_text(text)


def _without(name: str) -> dict[str, list[int]]:
    return {known: shape for known, shape in TENSORS.items() if known != name}


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (
            _without("model.layers.0.mlp.up_proj.weight"),
            r"1 tensors are missing, the first is model\.layers\.0\.mlp\.up_proj\.weight.*random",
        ),
        (_without("lm_head.weight"), r"the first is lm_head\.weight"),
        (
            {f"base.{name}": shape for name, shape in TENSORS.items()},
            "12 tensors are missing",
        ),
        (
            TENSORS | {"model.layers.1.input_layernorm.weight": [8]},
            r"model\.layers\.1\.input_layernorm\.weight does not belong.*num_hidden_layers",
        ),
        (TENSORS | {"model.layers.0.self_attn.q_proj.bias": [8]}, "q_proj.bias does not belong"),
        (TENSORS | {"model.norm.weight": [9]}, r"has shape \[9\], and config\.json says \[8\]"),
    ],
)
def test_tensors_that_the_architecture_does_not_have_are_refused(
    tmp_path: Path, model: Path, tensors: dict[str, list[int]], expected: str
) -> None:
    (model / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(SourceError, match=expected):
        _run(tmp_path, model)


def test_weights_that_are_quantized_already_are_refused(tmp_path: Path, model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors_bytes(dtype="I8"))
    with pytest.raises(SourceError, match=r"is I8, not floating point.*original checkpoint"):
        _run(tmp_path, model)


def test_buffers_and_a_tied_head_may_be_there(tmp_path: Path, model: Path) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": [2]}
    (model / "model.safetensors").write_bytes(safetensors_bytes(TENSORS | buffers))
    assert _run(tmp_path, model)[0]["parameters"] == PARAMETERS + 2


def test_a_missing_tokenizer_and_an_empty_directory(tmp_path: Path, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"there is no tokenizer\.json"):
        _run(tmp_path, model)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="not a Hugging Face checkpoint"):
        source.run(StageContext(_recipe(tmp_path, str(empty)), {}, tmp_path, Silent()))


def test_a_path_that_does_not_exist_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:3 \(model\.source\).*does not exist"):
        source.material(_recipe(tmp_path, "./no/such/model"))


def test_a_file_instead_of_a_directory(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RecipeError, match="is a file"):
        source.material(_recipe(tmp_path, str(model / "config.json")))


def test_a_pinned_hub_id_needs_no_network_to_plan(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "org/name")
    pinned = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"revision": "0" * 40})}
    )
    assert source.material(pinned) == {"hub": "org/name", "commit": "0" * 40}


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"org/name cannot be fetched.*local directory"):
        source.material(_recipe(tmp_path, "org/name"))


def test_an_unreachable_hub_is_named_whatever_http_library_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From huggingface_hub 1.0 on a failed connection is no OSError."""

    class HTTPError(Exception):
        pass

    class HubError(HTTPError, OSError):
        pass

    asked = []

    def model_info(*_arguments: object, **_options: object) -> None:
        asked.append(1)
        raise HTTPError("[Errno 111] Connection refused")

    monkeypatch.setattr("huggingface_hub.errors.HfHubHTTPError", HubError)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_silent", {})
    for _second in range(2):
        with pytest.raises(SourceError, match=r"org/name cannot be fetched.*cannot be reached"):
            source.material(_recipe(tmp_path, "org/name"))
    assert len(asked) == 1
    # A program that lives on asks again one day.
    now = time.monotonic() + hub.REMEMBERED_S
    monkeypatch.setattr(hub.time, "monotonic", lambda: now)
    with pytest.raises(SourceError, match="cannot be reached"):
        source.material(_recipe(tmp_path, "org/name"))
    assert len(asked) == 2


def test_other_bytes_of_equal_size_and_time_change_the_key(tmp_path: Path, model: Path) -> None:
    recipe = _recipe(tmp_path, str(model))
    path = model / "tokenizer.json"
    before, stat = source.material(recipe), path.stat()
    path.write_text("[]")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source.material(recipe) != before


def test_touching_a_file_changes_the_key_only(tmp_path: Path, model: Path) -> None:
    recipe = _recipe(tmp_path, str(model))
    before = source.material(recipe)
    (model / "tokenizer.json").write_text("{}  ")
    assert source.material(recipe) != before

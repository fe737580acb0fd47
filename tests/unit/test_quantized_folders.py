"""Folders that other libraries quantized, read to the last bit and taken over unchanged.

What they stand for is said by a layout that is written out in ``tests/foreign_folders.py``, or by
the library itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("ml_dtypes")
pytest.importorskip("transformers")

from pipeline.checkpoint import dequantize, open_checkpoint, validate
from pipeline.checkpoint.sources import QuantizedFolder
from pipeline.cli.main import app
from pipeline.errors import PipelineError, SourceError, UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.preflight.model_checks import check_model
from pipeline.preflight.stored import check_stored
from pipeline.progress import Silent
from pipeline.quantize.convert import convert
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import check_snapshot, facts_of
from tests import foreign_folders as foreign
from tests.foreign_folders import Made

Make = Callable[[Path], Made]
WRITTEN_OUT: dict[str, Make] = {
    "gptq": foreign.gptq,
    "gptq asym": lambda path: foreign.gptq(path, sym=False),
    "gptq v2 asym": lambda path: foreign.gptq(path, sym=False, v2=True),
    "gptq v2 labelled v1": lambda path: foreign.gptq(path, v2=True, labelled="gptq"),
    "gptq act-order": lambda path: foreign.gptq(path, act_order=True),
    "gptq act-order asym": lambda path: foreign.gptq(path, act_order=True, sym=False),
    "gptq one group": lambda path: foreign.gptq(path, group=-1),
    "awq": foreign.awq,
    "awq sym": lambda path: foreign.awq(path, zero_points=False),
    "compressed act-order": foreign.compressed_in_order,
}
BY_THE_LIBRARY: dict[str, Make] = {
    "int4": foreign.compressed_int4,
    "int4 asym": lambda path: foreign.compressed_int4(path, symmetric=False),
    "int4 channel": lambda path: foreign.compressed_int4(path, channel=True),
    "int8": foreign.compressed_int8,
}


BITSANDBYTES: dict[str, Make] = {
    "plain scales": foreign.nf4,
    "scales quantized too": lambda path: foreign.nf4(path, double=True),
}


def recipe_for(made: Made, *settings: str) -> Recipe:
    """A recipe that leaves the format to the folder."""
    path = made.path.parent / f"{made.path.name}.yaml"
    path.write_text(f"schema: 1\nname: taken\nmodel: {{source: {made.path.name}}}\n")
    return load_recipe(path, ["compile.max_seq_len=64", "compile.max_input_len=32", *settings])


def converted(made: Made, *settings: str) -> Path:
    """The checkpoint of a folder, checked as the stages do."""
    recipe = recipe_for(made, *settings)
    check_model(recipe, made.path)
    check_snapshot(made.path, facts_of(made.path), str(made.path))
    tp = recipe.compile.tensor_parallel
    output = made.path.parent / f"{made.path.name}-checkpoint-{tp}"
    output.mkdir()
    convert(made.path, recipe, output, Silent())
    validate(output)
    return output


def assert_same(checkpoint: Path, weights: dict[str, np.ndarray]) -> None:
    """Every linear of a checkpoint against what its rows stand for, bit for bit."""
    layers = open_checkpoint(checkpoint).weights().layers
    for index, layer in enumerate(layers):
        prefix = f"model.layers.{index}."
        for name, parts in (
            ("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("dense", ("self_attn.o_proj",)),
            ("fc", ("mlp.gate_proj",)),
            ("gate", ("mlp.up_proj",)),
            ("proj", ("mlp.down_proj",)),
        ):
            wanted = np.concatenate([weights[f"{prefix}{part}"] for part in parts])
            found = dequantize(getattr(layer, name))
            # A library multiplies in the dtype of its scales: the same product, rounded once more.
            assert np.array_equal(found.astype(wanted.dtype), wanted), f"{prefix}{name}"


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_written_out_layout_is_read_and_taken_over_to_the_last_bit(
    name: str, tmp_path: Path
) -> None:
    made = WRITTEN_OUT[name](tmp_path / "model")
    folder = QuantizedFolder(made.path)
    for linear, weight in made.weights.items():
        assert np.array_equal(folder.linear(linear).weight(), weight), linear
    assert_same(converted(made), made.weights)


@pytest.mark.parametrize("name", ["gptq asym", "awq", "gptq v2 labelled v1"])
def test_ranks_hold_the_same_weights(name: str, tmp_path: Path) -> None:
    """Rows of q, k and v each on their own, columns of o_proj and down_proj, copies of KV heads."""
    made = WRITTEN_OUT[name](tmp_path / "model")
    settings = ("compile.target=tensorrt", "compile.tensor_parallel=2")
    assert_same(converted(made, *settings), made.weights)


@pytest.mark.parametrize("name", BY_THE_LIBRARY)
def test_compressed_tensors_is_read_as_the_library_reads_it(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the library that says what is right")
    made = BY_THE_LIBRARY[name](tmp_path / "model")
    assert_same(converted(made), made.weights)


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_nf4_is_read_as_bitsandbytes_reads_it(name: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the library that says what is right")
    made = BITSANDBYTES[name](tmp_path / "model")
    folder = QuantizedFolder(made.path)
    for linear, weight in made.weights.items():
        assert np.array_equal(folder.linear(linear).weight(), weight), linear
    assert_same(converted(made), made.weights)


def test_int8_is_that_of_bitsandbytes_but_for_one_rounding(tmp_path: Path) -> None:
    """It multiplies a code by the largest value and then by 1/127; a checkpoint has one scale."""
    pytest.importorskip("bitsandbytes", reason="the library that says what is right")
    made = foreign.llm_int8(tmp_path / "model")
    layers = open_checkpoint(converted(made)).weights().layers
    for index, layer in enumerate(layers):
        wanted = made.weights[f"model.layers.{index}.mlp.down_proj"]
        found = dequantize(layer.proj)
        assert (np.abs(found - wanted) <= np.spacing(np.abs(wanted))).all()
        assert np.array_equal(
            layer.proj.weight, made.tensors[f"model.layers.{index}.mlp.down_proj.weight"]
        )


def test_autoawq_is_read_as_compressed_tensors_converts_it(tmp_path: Path) -> None:
    """Its converter knows AutoAWQ's order of nibbles by itself."""
    pytest.importorskip("compressed_tensors", reason="the library that says what is right")
    import torch
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    made = foreign.awq(tmp_path / "model")
    plain = {key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in made.tensors.items()}
    tensors = AutoAWQConverter(group_size=foreign.GROUP).process(plain)
    weights = QuantizationArgs(
        num_bits=4, symmetric=False, strategy="group", group_size=foreign.GROUP
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    folder = QuantizedFolder(made.path)
    for name in made.weights:
        ends = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
        state = {end: tensors[f"{name}.{end}"] for end in ends}
        wanted = PackedQuantizationCompressor.decompress(state, scheme)["weight"].numpy()
        assert np.array_equal(folder.linear(name).weight().astype(np.float16), wanted), name


def test_one_scale_for_a_row_is_repeated(tmp_path: Path) -> None:
    made = foreign.gptq(tmp_path / "model", group=-1)
    scales = open_checkpoint(converted(made)).weights().layers[0].proj.weights_scaling_factor
    assert scales is not None
    assert scales.shape == (foreign.HIDDEN, 2)
    assert np.array_equal(scales[:, 0], scales[:, 1])


def test_some_linears_may_be_in_floating_point(tmp_path: Path) -> None:
    made = foreign.gptq(tmp_path / "model")
    plain = _in_floating_point(made, "model.layers.1.mlp.down_proj")
    checkpoint = converted(made)
    proj = open_checkpoint(checkpoint).weights().layers[1].proj
    assert proj.algo == "NO_QUANT"
    assert np.array_equal(proj.weight, plain)
    assert open_checkpoint(checkpoint).weights().layers[0].proj.algo == "W4A16_AWQ"


def _in_floating_point(made: Made, name: str) -> np.ndarray:
    for end in ("qweight", "qzeros", "scales", "g_idx"):
        del made.tensors[f"{name}.{end}"]
    plain = made.weights[name].astype(np.float16)
    made.tensors[f"{name}.weight"] = plain
    made.write()
    return plain


def test_the_recipe_takes_format_and_groups_from_the_model(tmp_path: Path) -> None:
    recipe = recipe_for(foreign.gptq(tmp_path / "model"))
    assert (recipe.quantize.stored, recipe.quantize.group_size) == ("gptq", foreign.GROUP)
    assert recipe.quantize.format == "int4_gptq"
    assert not recipe.quantize.needs_calibration
    assert recipe_for(foreign.awq(tmp_path / "other")).quantize.format == "int4_awq"


def test_older_folders_say_it_in_a_file_beside(tmp_path: Path) -> None:
    made = foreign.gptq(tmp_path / "model", sym=False)
    settings = made.config.pop("quantization_config")
    del settings["quant_method"]
    made.write()
    (made.path / "quantize_config.json").write_text(json.dumps(settings))
    assert_same(converted(made), made.weights)


# What is not taken, by what its files say.
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 8}, "GPTQ of 8 bits.*which loses twice.*Set model.source"),
        ({"bits": 3}, "GPTQ of 3 bits"),
        ({"bits": 2}, "GPTQ of 2 bits"),
        ({"bits": None}, r"quantization_config\.bits is None, not a positive integer"),
        ({"checkpoint_format": "marlin"}, "layout 'marlin'.*Save it again with"),
        ({"dynamic": {"x": 1}}, r"rules of their own for some modules \(dynamic\)"),
        ({"lm_head": True}, "lm_head is quantized"),
        ({"group_size": 32}, "groups of 32 inputs cannot be written.*groups of 64 or 128"),
        ({"quant_method": "aqlm"}, "quantized already, by aqlm.*Set model.source"),
        ({"quant_method": "awq", "version": "gemv"}, "version gemv.*Save it again"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "unified checkpoint is NVFP4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "weights are fp4 in uint8"),
        (
            {"quant_method": "bitsandbytes"},
            "bitsandbytes says neither 4 nor 8 bits",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    made = foreign.gptq(tmp_path / "model")
    made.config["quantization_config"].update(changes)
    made.write()
    with pytest.raises(PipelineError, match=words) as caught:
        check_model(recipe_for(made), made.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dynamic": True, "strategy": "token"}, "per token while the model runs"),
        ({"symmetric": False}, "not symmetric integers"),
    ],
)
def test_activations_that_have_no_static_scale_are_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    made = foreign.compressed_int8(tmp_path / "model", **change)
    with pytest.raises(UnsupportedError, match=words):
        ModelFacts.from_directory(made.path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kv_cache_scheme", {"num_bits": 8}, "has a kv_cache_scheme"),
        ("transform_config", {"config_groups": {"a": {}}}, "has a transform_config"),
        ("config_groups", {}, "has 0 groups of linears"),
        ("format", "nvfp4-pack-quantized", "as nvfp4-pack-quantized"),
        ("sparsity_config", {"format": "sparse-24-bitmask"}, "that are sparse-24-bitmask"),
    ],
)
def test_what_compressed_tensors_adds_is_refused(
    key: str, value: object, words: str, tmp_path: Path
) -> None:
    made = foreign.compressed_in_order(tmp_path / "model")
    made.config["quantization_config"][key] = value
    made.write()
    with pytest.raises(UnsupportedError, match=words):
        ModelFacts.from_directory(made.path)


Q, K, DOWN = (
    f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
)


def _without(name: str) -> Callable[[Made], None]:
    return lambda made: made.tensors.pop(name) is None


def _with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Made], None]:
    def damage(made: Made) -> None:
        made.tensors[name] = change(made.tensors[name])

    return damage


def _plain(made: Made) -> None:
    _in_floating_point(made, K)


def _nothing_quantized(made: Made) -> None:
    for name in made.weights:
        _in_floating_point(made, name)


# One paragraph each, and before any stage has worked.
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without(f"{DOWN}.scales"), r"down_proj\.scales is missing.*GPTQ, 4 bits"),
        (_without(f"{Q}.qweight"), r"q_proj\.qweight is missing|q_proj is in floating point"),
        (_with(f"{Q}.scales", lambda a: a[:1]), r"q_proj\.scales has shape \[1, 128\], not \[2,"),
        (_with(f"{Q}.qweight", lambda a: a.T), r"q_proj\.qweight has shape"),
        (_with(f"{Q}.qzeros", lambda a: a.astype(np.int64)), "qzeros is I64, not I32"),
        (_with(f"{Q}.g_idx", lambda a: a + 1), r"q_proj\.g_idx names group 2 of 2"),
        (_with(f"{Q}.g_idx", lambda a: a - 1), r"q_proj\.g_idx names group -1 of 2"),
        (_with(f"{Q}.qzeros", lambda a: a + 1), "symmetric GPTQ, and the zero points are not all"),
        (_plain, r"k_proj is in floating point, and model\.layers\.0\.self_attn\.q_proj is quant"),
        (_nothing_quantized, "no linear has the tensors of GPTQ"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_paragraph(
    damage: Callable[[Made], None], words: str, tmp_path: Path
) -> None:
    made = foreign.gptq(tmp_path / "model")
    damage(made)
    made.write()
    with pytest.raises(SourceError, match=words) as caught:
        check_snapshot(made.path, facts_of(made.path), str(made.path))
    assert "\n" not in str(caught.value)


def _state(change: Callable[[dict[str, Any]], None]) -> Callable[[np.ndarray], np.ndarray]:
    def changed(raw: np.ndarray) -> np.ndarray:
        state = json.loads(raw.tobytes())
        change(state)
        return np.frombuffer(json.dumps(state).encode(), np.uint8)

    return changed


NF4_STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without(f"{Q}.weight.nested_absmax"), "nested_absmax is missing"),
        (_without(f"{Q}.weight.absmax"), r"q_proj\.weight\.absmax is missing"),
        (_without(NF4_STATE), "quant_state.bitsandbytes__nf4 is missing"),
        (_with(NF4_STATE, lambda a: a[:9]), "bitsandbytes__nf4 cannot be used. JSONDecodeError"),
        (_with(NF4_STATE, _state(lambda s: s.pop("shape"))), "cannot be used. KeyError: 'shape'"),
        (
            _with(NF4_STATE, _state(lambda s: s.update(blocksize=128))),
            "it is not nf4 of two dimensions in blocks of 64",
        ),
        (_with(NF4_STATE, _state(lambda s: s.update(shape=[64, 64]))), "says 64 x 64, and there"),
        (
            _with(f"{Q}.weight.quant_map", lambda a: a[::-1]),
            "quant_map has other levels than nf4",
        ),
        (_with(f"{Q}.weight", lambda a: a[:-1]), r"q_proj\.weight has shape"),
    ],
)
def test_a_damaged_folder_of_bitsandbytes_is_refused(
    damage: Callable[[Made], None], words: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    made = foreign.nf4(tmp_path / "model", double=True)
    damage(made)
    made.write()
    with pytest.raises(SourceError, match=words) as caught:
        converted(made)
    assert "\n" not in str(caught.value)


def test_other_forms_of_rows_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    made = foreign.llm_int8(tmp_path / "model")
    made.tensors[f"{Q}.weight_format"] = np.array(1, np.uint8)
    made.write()
    with pytest.raises(SourceError, match="weight_format is not row"):
        converted(made)


# What the values alone tell, while they are taken over.
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            _with(f"{Q}.g_idx", lambda a: np.where(a == a[0], 1 - a, a)),
            r"groups of attention\.qkv are not of one size|order of inputs of their own",
        ),
        (_with(f"{K}.g_idx", lambda a: a[::-1]), "q_proj, k_proj, v_proj have each a order"),
    ],
)
def test_orders_that_cannot_be_one_are_refused(
    damage: Callable[[Made], None], words: str, tmp_path: Path
) -> None:
    made = foreign.gptq(tmp_path / "model", act_order=True)
    damage(made)
    made.write()
    with pytest.raises(PipelineError, match=words):
        converted(made)


def test_a_bias_that_the_architecture_has_not_must_be_zero(tmp_path: Path) -> None:
    """GPTQ's tools write one of zeros for every linear."""
    made = foreign.gptq(tmp_path / "model")
    made.tensors[f"{Q}.bias"] = np.zeros(foreign.HEADS * foreign.HEAD, np.float16)
    made.write()
    assert_same(converted(made), made.weights)
    made.tensors[f"{Q}.bias"][3] = 1
    made.write()
    with pytest.raises(SourceError, match=r"q_proj\.bias is not zero"):
        convert(made.path, recipe_for(made), tmp_path, Silent())


def test_activation_scales_of_one_input_must_agree(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    made = foreign.compressed_int8(tmp_path / "model", each_its_own=True)
    with pytest.raises(UnsupportedError, match="have each a activation scale of their own"):
        converted(made)


def test_scales_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    made = foreign.gptq(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"scales of .* are float16, which bfloat16 cannot"):
        converted(made, "model.dtype=bfloat16")


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (
            foreign.gptq,
            ("quantize.format=fp8", "compile.target=tensorrt"),
            r"int4_gptq already \(GPTQ, 4 bits, groups of 64\), not fp8.*or set it to int4_gptq",
        ),
        (foreign.gptq, ("quantize.group_size=128",), "groups of 64, not group_size 128"),
        (
            lambda path: foreign.gptq(path, act_order=True),
            ("compile.target=tensorrt",),
            "does not take groups that take inputs out of order.*target to openvino or vllm",
        ),
        (
            lambda path: foreign.gptq(path, sym=False),
            ("compile.target=llamacpp",),
            "llamacpp does not take zero points.*target to openvino, tensorrt or vllm",
        ),
        (
            lambda path: foreign.gptq(path, act_order=True),
            ("compile.tensor_parallel=2", "compile.target=tensorrt"),
            "cannot be split over 2 ranks",
        ),
    ],
)
def test_a_recipe_that_does_not_go_with_the_folder_is_refused_before_any_work(
    make: Make, settings: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    made = make(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=words):
        check_model(recipe_for(made, *settings), made.path)


@pytest.mark.parametrize("key", ["search={}", "kv_cache=int8", "portable=true"])
def test_what_is_decided_while_quantizing_is_refused(key: str, tmp_path: Path) -> None:
    made = foreign.gptq(tmp_path / "model")
    with pytest.raises(PipelineError, match="is decided when weights are quantized"):
        recipe_for(made, f"quantize.{key}")


def test_a_model_of_the_hub_needs_the_key(tmp_path: Path) -> None:
    """Its files are not here when the recipe is read, so that the recipe has to say it."""
    made = foreign.gptq(tmp_path / "model")
    recipe = recipe_for(made)
    unsaid = recipe.model_copy(update={"quantize": recipe.quantize.model_copy()})
    unsaid.quantize.__dict__["stored"] = None
    with pytest.raises(UnsupportedError, match=r"Set quantize\.stored to gptq and"):
        check_model(unsaid, made.path)
    plain = foreign.gptq(tmp_path / "plain")
    del plain.config["quantization_config"]
    plain.write()
    with pytest.raises(UnsupportedError, match="the model is not quantized, and the recipe says"):
        check_model(recipe, plain.path)


def test_init_writes_what_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = foreign.gptq(tmp_path / "model", sym=False)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "model", "--output", "new.yaml"])
    assert result.exit_code == 0, result.output
    recipe = load_recipe(tmp_path / "new.yaml")
    assert recipe.quantize.stored == "gptq"
    assert recipe.quantize.group_size == foreign.GROUP
    assert recipe.quantize.calibration is None
    check_model(recipe, made.path)


def test_plan_says_what_is_taken_over_and_what_is_not_measured(tmp_path: Path) -> None:
    made = foreign.awq(tmp_path / "model")
    (tmp_path / "text.txt").write_text("w1 w2 w3\n")
    recipe = recipe_for(made, "evaluate.text=text.txt")
    found = [finding.what for finding in check_stored(recipe, facts_of(made.path))]
    assert found == [
        "the model is quantized already: AutoAWQ, 4 bits, groups of 64, zero points",
        "what this quantization lost is not measured",
    ]
    measured = recipe_for(made, "evaluate.text=text.txt", f"evaluate.reference={made.path}")
    assert len(check_stored(measured, facts_of(made.path))) == 1


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("quantized", r"evaluate\.reference is quantized itself \(GPTQ"),
        ("other", "evaluate.reference has vocab_size 65, and the model 64"),
        ("absent", "there is no config.json"),
    ],
)
def test_a_reference_that_is_none_is_refused(reference: str, words: str, tmp_path: Path) -> None:
    made = foreign.gptq(tmp_path / "model")
    foreign.gptq(tmp_path / "quantized")
    other = foreign.gptq(tmp_path / "other")
    del other.config["quantization_config"]
    other.config["vocab_size"] = 65
    other.write()
    settings = ("evaluate.text=x.txt", f"evaluate.reference={tmp_path / reference}")
    with pytest.raises(PipelineError, match=words):
        check_model(recipe_for(made, *settings), made.path)

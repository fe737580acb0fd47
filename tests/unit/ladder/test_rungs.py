"""The recipes of a ladder: which formats are meant, and what becomes of the recipe in each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import RecipeError, UsageError
from pipeline.ladder.rungs import every_format, make_rung, parse_formats
from pipeline.recipe.file import load_recipe
from tests.conftest import PROJECT

DEMO = PROJECT / "configs" / "demo.yaml"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


def recipe_file(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = DEMO.read_text(encoding="utf-8").replace("../examples", str(PROJECT / "examples"))
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "formats"),
    [
        ("float16,int8_sq,int4_awq", ["float16", "int8_sq", "int4_awq"]),
        (" FP16, int8-sq ,awq,", ["float16", "int8_sq", "int4_awq"]),
        ("int4_awq,w4a16-awq,int4-awq", ["int4_awq"]),
        ("float16,bfloat16", ["float16", "bfloat16"]),
    ],
)
def test_formats_in_every_spelling(text: str, formats: list[str]) -> None:
    assert parse_formats(text, load_recipe(DEMO)) == (formats, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("float16,int4_agw", r"'int4_agw' is no format\. Did you mean int4_awq\? Formats: float16"),
        ("int8", r"'int8' is no format\. Did you mean int8_sq\?"),
        ("zzz", r"'zzz' is no format\. Formats: float16, bfloat16"),
        ("int4-wo", r"int4-wo is not taken\. ModelOpt labels its round-to-nearest INT4"),
        (" , ", r"--formats names no format"),
    ],
)
def test_what_is_no_format_is_told_with_the_right_one(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:  # noqa: PT011  where and why come between the words
        parse_formats(text, load_recipe(DEMO))
    assert re.search(words, str(caught.value)), caught.value


def test_16_bit_is_the_dtype_of_the_recipe(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, ("dtype: float16 ", "dtype: bfloat16 "))
    recipe = load_recipe(path)
    # By hand a format wins over the dtype of the file, and not over that of the command line.
    by_hand = load_recipe(path, ["quantize.format=float16"])
    assert (by_hand.dtype, len(by_hand.notices)) == ("float16", 1)
    with pytest.raises(RecipeError, match=r"--set model\.dtype=float16"):
        load_recipe(path, ["quantize.format=float16", "model.dtype=bfloat16"])
    formats, notes = parse_formats("float16,int8_sq", recipe)
    assert formats == ["bfloat16", "int8_sq"]
    assert "16 bit is bfloat16 here" in notes[0]
    made = [make_rung(name, path, (), recipe).recipe for name in formats]
    assert [one and (one.quantize.format, one.dtype) for one in made] == [
        ("bfloat16", "bfloat16"),
        ("int8_sq", "bfloat16"),
    ]
    # Who names both wants both.
    both, _ = parse_formats("float16,bfloat16", recipe)
    dtypes = [
        rung.recipe and rung.recipe.dtype
        for rung in (make_rung(name, path, (), recipe) for name in both)
    ]
    assert dtypes == ["float16", "bfloat16"]


def test_a_dtype_that_only_the_format_says_is_kept(tmp_path: Path) -> None:
    path = recipe_file(
        tmp_path,
        ("format: int4_awq ", "format: bfloat16 "),
        ("  dtype: float16     ", "  # dtype   "),
    )
    rung = make_rung("int8_sq", path, (), load_recipe(path))
    assert rung.recipe
    assert rung.recipe.dtype == "bfloat16"


def test_outputs_lie_beside_those_of_the_recipe_and_overrides_count() -> None:
    overrides = ["compile.max_batch_size=4", "name=mine"]
    rung = make_rung("int8_sq", DEMO, overrides, load_recipe(DEMO, overrides))
    assert rung.recipe
    assert rung.name == rung.recipe.name == "mine-int8_sq"
    assert rung.recipe.compile.max_batch_size == 4
    assert rung.recipe.arguments.startswith(f"{DEMO} --set compile.max_batch_size=4")


def test_what_only_another_format_reads_does_not_stop_a_rung() -> None:
    overrides = ["quantize.kv_cache=int8", "compile.target=tensorrt"]
    recipe = load_recipe(DEMO, overrides)
    plain, quantized = (
        make_rung(name, DEMO, overrides, recipe).recipe for name in ("float16", "int8_sq")
    )
    assert plain
    assert quantized
    assert (plain.quantize.kv_cache, quantized.quantize.kv_cache) == (None, "int8")

    overrides = ["quantize.search.candidates=[64, 128]"]
    recipe = load_recipe(DEMO, overrides)
    made = {
        name: make_rung(name, DEMO, overrides, recipe)
        for name in ("float16", "int8_sq", "int4_awq")
    }
    assert {name: rung.refusal for name, rung in made.items()} == dict.fromkeys(made)
    searches = {name: rung.recipe and rung.recipe.quantize.search for name, rung in made.items()}
    assert searches["float16"] is None
    assert searches["int8_sq"]
    assert searches["int8_sq"].candidates is None
    assert searches["int4_awq"]
    assert searches["int4_awq"].candidates == [64, 128]


def test_a_rung_that_cannot_be_says_why(tmp_path: Path) -> None:
    recipe = load_recipe(DEMO)
    assert "fp8" in str(make_rung("fp8", DEMO, (), recipe).refusal)
    path = tmp_path / "plain.yaml"
    path.write_text(
        "schema: 1\nname: p\nmodel: {source: examples/tiny_llama/model}\n"
        "quantize: {format: float16}\n"
    )
    rung = make_rung("int8_sq", path, (), load_recipe(path))
    assert rung.recipe is None
    assert "quantize.calibration.text" in str(rung.refusal)
    assert "--set" not in str(rung.refusal)


def test_every_format_is_those_that_the_target_takes() -> None:
    assert every_format(DEMO, (), load_recipe(DEMO)) == [
        "float16",
        "int8_sq",
        "int4_awq",
        "int4_gptq",
        "nf4",
        "int8_wo",
    ]
    gpu = ["compile.target=tensorrt", "compile.gpu=H100-80GB"]
    assert "fp8" in every_format(DEMO, gpu, load_recipe(DEMO, gpu))


def test_a_rung_may_be_a_type_that_a_target_rounds_to() -> None:
    recipe = load_recipe(DEMO)
    names, notes = parse_formats("fp32,fp16,nf4,q8-0,Q4_K_M", recipe)
    assert (names, notes) == (["float32", "float16", "nf4", "q8_0", "q4_k_m"], [])
    rung = make_rung("q4_k_m", DEMO, (), recipe)
    assert rung.recipe
    assert (rung.label, rung.engine, rung.name) == (
        "q4_k_m",
        "llamacpp",
        "tiny-llama-int4-awq-q4_k_m",
    )
    made = rung.recipe
    assert (made.quantize.format, made.compile.target, made.compile.llamacpp.type) == (
        "float16",
        "llamacpp",
        "q4_k_m",
    )
    # The engine is measured on what the checkpoints of the other rungs are measured on.
    assert made.evaluate
    assert made.evaluate.engine_tokens == made.evaluate.tokens == 20000
    assert rung.own
    assert rung.own.weight_bits == 4


def test_float32_is_a_rung_and_no_baseline() -> None:
    recipe = load_recipe(DEMO)
    rung = make_rung("float32", DEMO, (), recipe)
    assert rung.recipe
    assert rung.recipe.dtype == "float32"
    # 16 bit stays what the recipe's dtype is.
    assert parse_formats("float32,bf16", recipe)[0] == ["float32", "float16"]

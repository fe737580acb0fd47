"""Every mistake in a recipe names file, line, key, reason and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RecipeError, UsageError
from pipeline.recipe.file import load_recipe

from ..conftest import PROJECT

BASE = """\
schema: 1
name: test
model:
  source: some/model
quantize:
  format: int4_awq
  group_size: 64
  calibration:
    text: calibration.jsonl
compile:
  max_input_len: 100
  max_seq_len: 200
"""


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return path


def test_defaults_and_values_are_read(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    assert recipe.quantize.format == "int4_awq"
    assert recipe.quantize.group_size == 64
    assert recipe.compile.max_seq_len == 200
    assert recipe.compile.target == "openvino"
    assert recipe.serve.max_queue_size == 256


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "group_size: 64",
            "group_size: 32",
            r"recipe\.yaml:7:\d+: quantize\.group_size.*64 or 128",
        ),
        ("group_size: 64", "group_sise: 64", r"recipe\.yaml:7:\d+: .*Did you mean group_size\?"),
        ("group_size: 64", "group_size: '64'", r"recipe\.yaml:7:\d+: quantize\.group_size"),
        (
            "max_input_len: 100",
            "max_input_len: 300",
            r"recipe\.yaml:10:\d+: .*larger than max_seq_len",
        ),
        ("max_seq_len: 200", "max_seq_len: 0", r"recipe\.yaml:12:\d+: .*greater than 0"),
        ("max_seq_len: 200", "max_seq_len: true", r"recipe\.yaml:12:\d+: .*not a whole number"),
        ("format: int4_awq", "format: int4_wo", r"recipe\.yaml:6:\d+: .*int4_wo is refused"),
        ("format: int4_awq", "format: int3", r"recipe\.yaml:6:\d+: .*'int3' is not one of"),
        (
            "max_seq_len: 200",
            "tensorrt: {plugin_config: {nccl_plugin: bf16}}",
            r"recipe\.yaml:12:\d+: .*'bf16' is not allowed: it is 'auto', .*, 'float32' or null\.",
        ),
        ("name: test", "name: ../evil", r"recipe\.yaml:2:\d+: name"),
        (
            "compile:",
            "evaluate: {text: held-out.txt, sequence_length: 64, stride: 64}\ncompile:",
            r"recipe\.yaml:10:\d+: evaluate.*Stride 64 leaves windows of 64 tokens no context",
        ),
        ("name: test", "nome: test", r"recipe\.yaml:2:1: unknown key nome\. Did you mean name\?$"),
        ("  source: some/model", "  source: ''", r"recipe\.yaml:4:\d+: model\.source"),
        ("schema: 1", "schema: 2", r"recipe\.yaml:1:\d+: schema is wrong"),
        (
            "  calibration:\n    text: calibration.jsonl\n",
            "",
            r"recipe\.yaml:5:\d+: quantize.*needs quantize\.calibration\.text",
        ),
        (
            "  source: some/model",
            "  source: some/model\n  trust_remote_code: true\n  revision: main",
            r"recipe\.yaml:3:\d+: model.*commit hash of 40 digits",
        ),
        ("max_seq_len: 200", "tokens_per_block: 64", r"blocks of 32 tokens"),
        ("name: test", "name: store", r"recipe\.yaml:2:\d+: name.*folder of the artifact store"),
        ("name: test", "name: STORE", r"recipe\.yaml:2:\d+: name.*choose another name"),
        ("schema: 1", "schema: true", r"recipe\.yaml:1:\d+: schema.*True is not a whole number"),
        ("schema: 1", "schema: 1.0", r"recipe\.yaml:1:\d+: schema.*1\.0 is not a whole number"),
        (
            "group_size: 64",
            "group_size: 64.0",
            r"recipe\.yaml:7:\d+: .*64\.0 is not a whole number",
        ),
        ("name: test", "name: 2025", r"recipe\.yaml:2:\d+: name.*Put the value of name in quotes"),
        ("text: calibration.jsonl", "text: ''", r"recipe\.yaml:9:\d+: quantize\.calibration\.text"),
        ("text: calibration.jsonl", r'text: "a\0.txt"', r"recipe\.yaml:9:\d+: .*NUL character"),
        ("  source: some/model", "", r"recipe\.yaml:3:\d+: model.*must be a section.*indented"),
        ("max_seq_len: 200", "openvino: {dynamic_quantization_group_size: false}", "whole number"),
    ],
)
def test_a_wrong_value_names_its_place(
    recipe_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in BASE
    recipe_path.write_text(BASE.replace(old, new))
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(recipe_path)
    assert caught.value.exit_code == 2


def test_a_choice_that_may_be_null_says_so(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"True is not allowed: it is 'xgrammar' or null\."):
        load_recipe(recipe_path, ["serve.guided_decoding=true"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [unclosed", r"recipe\.yaml:\d+:\d+: the recipe is not valid YAML"),
        ("a: 1\na: 2\n", r"recipe\.yaml:2:\d+: .*given twice"),
        ("", "empty or not a mapping"),
        ("- a\n- b\n", "empty or not a mapping"),
        ("x: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("name: x\n? [a, b]\n: 1\n", r"recipe\.yaml:2:\d+: .*key of this line is not plain text"),
        ("name: x\n? {a: b}\n: 1\n", r"recipe\.yaml:2:\d+: .*key of this line is not plain text"),
        ("name: x\n1: y\n", r"recipe\.yaml:2:\d+: .*key '1' is not plain text"),
        (f"a: 1\nname: {'9' * 5000}\n", r"recipe\.yaml:2:\d+: .*9' cannot be read"),
        ("a: 1\nname: 2025-13-45\n", r"recipe\.yaml:2:\d+: .*'2025-13-45' cannot be read: month"),
        ("a: 1\nname: !!timestamp x\n", r"recipe\.yaml:2:\d+: .*'x' cannot be read"),
        ("a: " + "[" * 3000, "It is nested too deeply"),
        ("a: &a {b: *a}\n", "unconstructable recursive node"),
        ("name: x\n<<: 5\n", r"recipe\.yaml:2:\d+: .*merging"),
    ],
)
def test_a_broken_file_is_refused(recipe_path: Path, text: str, expected: str) -> None:
    recipe_path.write_text(text)
    with pytest.raises(RecipeError, match=expected):
        load_recipe(recipe_path)


def test_a_missing_file_and_bytes_that_are_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    for path in (tmp_path / "binary.yaml", tmp_path, Path("a\0b.yaml")):
        with pytest.raises(RecipeError, match=r"cannot be read\. .*Name a YAML file in UTF-8"):
            load_recipe(path)


def test_a_key_with_nothing_below_it_keeps_the_sections_defaults(recipe_path: Path) -> None:
    text = BASE.replace("  max_input_len: 100\n  max_seq_len: 200\n", "  openvino:\n")
    recipe_path.write_text(f"{text}serve:\nevaluate:\nbench: null\n")
    recipe = load_recipe(recipe_path)
    assert recipe.compile.openvino.inference_precision == "f32"
    assert recipe.serve.max_queue_size == 256
    assert recipe.bench.concurrency == [1, 8]
    # Without defaults there is no section to keep.
    assert recipe.evaluate is None


def test_an_empty_section_can_be_set_from_the_command_line(recipe_path: Path) -> None:
    recipe_path.write_text(f"{BASE}evaluate:\n")
    recipe = load_recipe(recipe_path, ["evaluate.text=held.txt", "evaluate.gates.top1_agreement=1"])
    assert recipe.evaluate is not None
    assert recipe.evaluate.text == "held.txt"
    assert recipe.evaluate.gates.top1_agreement == 1.0


def test_merge_keys_are_read_and_their_own_keys_win(recipe_path: Path) -> None:
    recipe_path.write_text(
        BASE.replace("  max_input_len: 100", "  <<: {max_input_len: 50, max_seq_len: 90}")
    )
    recipe = load_recipe(recipe_path)
    assert (recipe.compile.max_input_len, recipe.compile.max_seq_len) == (50, 200)
    assert "recipe.yaml:11" in recipe.place("compile.max_input_len")
    assert "recipe.yaml:12" in recipe.place("compile.max_seq_len")


def test_an_override_of_an_aliased_section_leaves_its_other_use(recipe_path: Path) -> None:
    text = BASE.replace("  calibration:\n    text: ", "  calibration: &t\n    text: ")
    recipe_path.write_text(f"{text}evaluate: *t\n")
    recipe = load_recipe(recipe_path, ["evaluate.text=held.txt"])
    assert recipe.evaluate is not None
    assert recipe.quantize.calibration is not None
    assert recipe.evaluate.text == "held.txt"
    assert recipe.quantize.calibration.text == str(recipe_path.parent / "calibration.jsonl")


@pytest.mark.parametrize(
    ("number", "value"), [("1e-3", 0.001), ("2E1", 20.0), ("1.5e2", 150.0), (".5e-1", 0.05)]
)
def test_numbers_with_an_exponent_need_no_point(
    recipe_path: Path, number: str, value: float
) -> None:
    recipe_path.write_text(
        f"{BASE}evaluate: {{text: t.txt, gates: {{perplexity_increase: {number}}}}}\n"
    )
    overrides = [f"evaluate.gates.kl_divergence={number}"]
    recipe = load_recipe(recipe_path, overrides)
    assert recipe.evaluate is not None
    assert recipe.evaluate.gates.perplexity_increase == value
    assert recipe.evaluate.gates.kl_divergence == value


def test_set_overrides_before_validation(recipe_path: Path) -> None:
    recipe = load_recipe(
        recipe_path, ["compile.max_seq_len=300", "quantize.calibration.samples=8", "name=other"]
    )
    assert recipe.compile.max_seq_len == 300
    assert recipe.quantize.calibration is not None
    assert recipe.quantize.calibration.samples == 8
    assert recipe.name == "other"


@pytest.mark.parametrize(
    ("override", "error", "expected"),
    [
        ("compile.max_seq_len", UsageError, "not an assignment"),
        ("=3", UsageError, "not an assignment"),
        ("name.x=3", UsageError, "name is not a section.*says name: 'test'.*Name the key with"),
        ("compile.max_seq_len=[", UsageError, "not valid YAML.*Close its brackets"),
        ("compile.max_seq_len=2025-13-45", UsageError, "not valid YAML.*month must be in"),
        (f"compile.max_seq_len={'9' * 5000}", UsageError, "not valid YAML.*4300"),
        (f"compile.max_seq_len={'[' * 3000}", UsageError, "nested too deeply"),
        ("bench.concurrency=[]", RecipeError, "at least 1 item"),
        ("serve.kv_cache_free_gpu_mem_fraction=.nan", RecipeError, "finite number"),
        ("evaluate={text: t.txt, sequence_length: 1}", RecipeError, "greater than or equal to 2"),
        (
            "evaluate={text: t.txt, gates: {kl_divergence: .inf}}",
            RecipeError,
            r"evaluate\.gates\.kl_divergence is wrong\. .*finite number",
        ),
        (
            "evaluate={text: t.txt, gates: {perplexity_increase: 2%}}",
            RecipeError,
            r"evaluate\.gates\.perplexity_increase is wrong\. Write 0\.02, not '2%'",
        ),
        (
            "evaluate={text: t.txt, gates: {top1_agreement: 95}}",
            RecipeError,
            r"evaluate\.gates\.top1_agreement is wrong\. 95 is more than 1: write 0\.95 for 95 %",
        ),
        (
            "evaluate={text: t.txt, gates: {engine_top1_agreement: 1.5 %}}",
            RecipeError,
            r"Write 0\.015, not '1\.5 %'",
        ),
        (
            "evaluate={text: t.txt, gates: {accuracy_loss: 200}}",
            RecipeError,
            "200 is more than 1: 1 is all of it",
        ),
        (
            "evaluate={text: t.txt, gates: {kl_divergence: automatic}}",
            RecipeError,
            "'automatic' is not a limit: write a number, auto, or null",
        ),
        (
            "evaluate={text: t.txt, gates: {kl_divergence: true}}",
            RecipeError,
            "True is not a limit",
        ),
        (
            "evaluate={text: t.txt, gates: {kl_divergence: -1}}",
            RecipeError,
            "-1 is no limit: write a finite number from 0 on",
        ),
        ("compile.max_seq_len=50", RecipeError, "larger than max_seq_len"),
        ("compile.max_sequence_len=50", RecipeError, r"Did you mean max_seq_len\?"),
    ],
)
def test_a_wrong_override_is_named(
    recipe_path: Path, override: str, error: type[UsageError], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        load_recipe(recipe_path, [override])


def test_a_limit_is_a_number_null_or_left_to_the_model(recipe_path: Path) -> None:
    gates = "{top1_agreement: 1, kl_divergence: null, accuracy_loss: auto}"
    recipe = load_recipe(recipe_path, [f"evaluate={{text: t.txt, gates: {gates}}}"])
    assert recipe.evaluate is not None
    found = recipe.evaluate.gates
    assert found.top1_agreement == 1.0
    assert found.kl_divergence is None
    assert found.accuracy_loss == found.perplexity_increase == "auto"


@pytest.mark.parametrize(
    ("alias", "name"),
    [("awq", "int4_awq"), ("int8_smoothquant", "int8_sq"), ("W4A16_AWQ", "int4_awq")],
)
def test_format_aliases_store_one_name(recipe_path: Path, alias: str, name: str) -> None:
    assert load_recipe(recipe_path, [f"quantize.format={alias}"]).quantize.format == name


def test_place_falls_back_to_the_enclosing_section(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["compile.max_batch_size=4"])
    assert recipe.place("quantize.group_size").endswith("recipe.yaml:7 (quantize.group_size)")
    assert recipe.place("compile.max_num_tokens").endswith(":10 (compile.max_num_tokens)")
    assert recipe.place("compile.max_batch_size").startswith("--set compile.max_batch_size=4")


def test_an_unquantized_format_and_another_dtype_contradict(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"quantize\.format bfloat16 contradicts model\.dtype"):
        load_recipe(recipe_path, ["quantize.format=bfloat16", "model.dtype=float16"])
    assert load_recipe(recipe_path, ["quantize.format=bfloat16"]).quantize.format == "bfloat16"


def test_a_kv_cache_needs_a_quantized_format(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match="kv_cache needs a quantized format"):
        load_recipe(recipe_path, ["quantize.format=float16", "quantize.kv_cache=int8"])


@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.evaluate is not None
    assert recipe.evaluate.text != (recipe.quantize.calibration or recipe.evaluate).text or (
        recipe.quantize.calibration is None
    )

"""``init`` from ``config.json`` alone: every file that it writes is one that plan takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline import api
from pipeline.cli.main import app
from pipeline.errors import PipelineError, UsageError
from pipeline.recipe.docs import recipe_keys, schema_text
from pipeline.scaffold.document import GATES, SHOWN, first_sentence, yaml_value
from pipeline.source.lines import read_texts
from pipeline.targets.openvino import memory

from ..conftest import PROJECT

DATA = PROJECT / "tests" / "data"
GIB = 1 << 30
# Meta's and Qwen's model cards.
BILLIONS = {
    "llama-3.1-8b": "8.03",
    "llama-3.1-70b": "70.6",
    "qwen2.5-7b": "7.62",
    "qwen3-8b": "8.19",
}


@pytest.fixture(scope="module")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that the processor is measured once."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, build_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("build").symlink_to(build_dir)
    monkeypatch.setattr(memory, "machine_memory", lambda: 24 * GIB)


def model(of: str = "llama-3.1-8b", folder: str = "model", **changes: Any) -> str:
    """A folder with nothing but the public config.json, with some of it changed."""
    config = json.loads((DATA / f"{of}.json").read_text())
    Path(folder).mkdir()
    Path(folder, "config.json").write_text(json.dumps(config | changes))
    return folder


def init(*arguments: str) -> Any:
    """What ``--json`` says of a run that must not fail."""
    done = CliRunner().invoke(app, ["init", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def choices(made: Any) -> dict[str, Any]:
    return {choice["key"]: choice["value"] for choice in made["choices"]}


def planned(made: Any) -> api.Plan:
    """What plan says of the file that was written; its sizes are those that were told."""
    recipe = api.load_recipe(made["recipe"])
    written = recipe.model_dump(by_alias=True)
    for key, value in choices(made).items():
        place: Any = written
        for part in key.split("."):
            place = place[part]
        if key in ("model.source", "quantize.calibration.text", "evaluate.text"):
            # The file names them from its own folder.
            assert Path(place).samefile(Path(made["recipe"]).parent / value), key
        else:
            assert place == value, key
    found = api.plan(recipe)
    assert found.exit_code == 0
    return found


def refusal(*arguments: str) -> PipelineError:
    before = sorted(Path().rglob("*"))
    done = CliRunner().invoke(app, ["init", *arguments])
    assert isinstance(done.exception, PipelineError), done
    assert sorted(Path().rglob("*")) == before
    return done.exception


@pytest.mark.parametrize("of", BILLIONS)
@pytest.mark.parametrize("gpu", ["L4", "A100-80GB", "H100-80GB"])
def test_a_gpu_holds_what_is_written_for_it(of: str, gpu: str) -> None:
    made = init(model(of), "--gpu", gpu)
    found, sizes = planned(made), choices(made)
    assert sizes["compile.target"] == "tensorrt"
    assert found.engine is not None
    # The target's own plan: all sequences at full length together.
    assert found.engine.values["memory"]["sequences"] == sizes["compile.max_batch_size"] >= 8
    assert not [finding for finding in found.findings if finding.severity == "warning"]
    heads = json.loads(Path("model/config.json").read_text())["num_attention_heads"]
    assert heads % sizes["compile.tensor_parallel"] == 0
    assert f"for {BILLIONS[of]} billion parameters" in Path(made["recipe"]).read_text()


@pytest.mark.parametrize(
    ("form", "gpu", "ranks"),
    [
        # 37 GiB of weights, and 141 GB: by hand, one GPU fewer holds no KV cache beside them.
        ("int4_awq", "L4", 4),
        ("int4_awq", "A100-80GB", 1),
        ("bfloat16", "A100-80GB", 2),
        ("bfloat16", "L4", 8),
    ],
)
def test_a_model_too_big_for_a_gpu_is_shared(form: str, gpu: str, ranks: int) -> None:
    made = init(model("llama-3.1-70b"), "--gpu", gpu, "--format", form)
    planned(made)
    assert choices(made)["compile.tensor_parallel"] == ranks


def test_the_memory_of_this_machine_decides_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = init(model())
    planned(made)
    sizes = choices(made)
    # float32 keys and values of 32 layers, 8 heads and 128 features; 4-bit linears, 16-bit tables.
    cache = 2 * 32 * 8 * 128 * 4 * sizes["compile.max_seq_len"] * sizes["compile.max_batch_size"]
    linears = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    weights = linears // 2 + 2 * 2 * 128256 * 4096
    assert cache + weights <= 12 * GIB < 2 * cache + weights
    monkeypatch.setattr(memory, "machine_memory", lambda: 4 * GIB)
    error = refusal("model", "--output", "other.yaml")
    assert "this machine has" in error.what or "fits" in error.what


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, {"model.dtype": "bfloat16", "quantize.format": "int4_awq"}),
        ({"torch_dtype": "float16"}, {"model.dtype": "float16"}),
        ({"torch_dtype": "float32"}, {"model.dtype": "float16"}),
        # 64 divides it and 128 does not.
        ({"intermediate_size": 14336 - 64}, {"quantize.group_size": 64}),
        ({"intermediate_size": 14336 - 16}, {"quantize.format": "int8_sq"}),
        ({"max_position_embeddings": 1000}, {"compile.max_seq_len": 992}),
        ({"max_position_embeddings": 20}, {"compile.max_seq_len": 20, "compile.max_input_len": 15}),
        ({"tie_word_embeddings": True}, {}),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, {}),
        ({"rope_scaling": None, "max_position_embeddings": 2048}, {"compile.max_seq_len": 2048}),
    ],
)
@pytest.mark.parametrize("gpu", [(), ("--gpu", "H100-80GB")])
def test_shapes_and_positions_decide(
    changes: dict[str, Any], expected: dict[str, Any], gpu: tuple[str, ...]
) -> None:
    made = init(model(**changes), *gpu)
    planned(made)
    found = choices(made)
    assert expected.items() <= found.items()
    assert found["compile.max_input_len"] < found["compile.max_seq_len"]


@pytest.mark.parametrize(
    ("intermediate_size", "advice"),
    [
        (14336, "try quantize.group_size: 64 or format int4_gptq or format int8_sq"),
        (14336 - 64, "try format int4_gptq or format int8_sq"),  # its groups are of 64 already
        (14336 - 16, "try quantize.search: {}"),  # int4_awq does not go with it
    ],
)
def test_the_advice_for_a_closed_gate_is_new_and_can_be_followed(
    intermediate_size: int, advice: str
) -> None:
    made = init(model(intermediate_size=intermediate_size))
    reason = next(item["why"] for item in made["choices"] if item["key"] == "quantize.format")
    assert reason.endswith(f"If a gate closes: {advice}")


@pytest.mark.parametrize("gpu", [(), ("--gpu", "A100-40GB")])
def test_a_window_is_kept_within(gpu: tuple[str, ...]) -> None:
    mistral = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 1024,
        "rope_scaling": None,
    }
    made = init(model(**mistral), *gpu)
    planned(made)
    assert choices(made)["compile.max_seq_len"] == 1024


@pytest.mark.parametrize("form", ["float16", "bfloat16", "int8_sq", "awq", "w4a8-awq", "fp8"])
def test_a_format_that_is_asked_for_is_taken(form: str) -> None:
    made = init(model(), "--gpu", "H100-80GB", "--format", form)
    planned(made)
    recipe = api.load_recipe(made["recipe"])
    assert recipe.quantize.format == {"awq": "int4_awq", "w4a8-awq": "w4a8_awq"}.get(form, form)
    names = [Path(name).name for name in made["files"]]
    assert ("stopgap-calibration.jsonl" in names) is recipe.quantize.needs_calibration


def test_a_target_alone_leaves_the_gpu_open() -> None:
    made = init(model(), "--target", "tensorrt")
    planned(made)
    assert choices(made)["compile.gpu"] is None


# What plan refuses of the model is refused in the same words.
@pytest.mark.parametrize(
    ("config", "others", "words"),
    [
        (
            {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"},
            (),
            "Phi3ForCausalLM is not",
        ),
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, (), "already, by hqq"),
        (None, ("adapter_config.json", "adapter_model.safetensors"), "is a LoRA adapter"),
        (None, ("model.Q4_K_M.gguf",), "is a model of llama.cpp"),
        ({}, ("model.safetensors",), "safetensors file is damaged"),
    ],
)
def test_what_plan_refuses_is_refused_alike(
    config: dict[str, Any] | None, others: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    source = model(num_hidden_layers=2, **config or {})
    if config is None:
        Path(source, "config.json").unlink()
    for name in others:
        Path(source, name).write_bytes(b"{}")
    error = refusal(source)
    recipe = tmp_path / "by-hand.yaml"
    recipe.write_text(f"name: t\nmodel: {{source: {source}}}\nquantize: {{format: bfloat16}}\n")
    with pytest.raises(PipelineError, match=words) as wanted:
        api.plan(api.load_recipe(recipe))
    assert (error.what, error.why, error.fix) == (
        wanted.value.what,
        wanted.value.why,
        wanted.value.fix,
    )
    assert error.exit_code == wanted.value.exit_code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model", "--target", "cuda"), "there is no target cuda"),
        (("model", "--target", "openvino", "--gpu", "L4"), "is for no GPU"),
        (("model", "--format", "int3"), "there is no format int3"),
        (("model", "--format", "nvfp4"), "NVFP4 on CUDA only"),
        (("model", "--gpu", "L5"), "there is no GPU L5"),
        (("model", "--heldout", "x.txt"), "--heldout needs --text"),
        (("model", "--text", "absent.txt"), "no such text file"),
        (("model", "--output", "absent/x.yaml"), "does not exist"),
        (("absent",), "there is no model directory absent"),
    ],
)
def test_a_wrong_option_writes_nothing(arguments: tuple[str, ...], words: str) -> None:
    model()
    error = refusal(*arguments)
    assert words in str(error)
    assert error.exit_code == 2


def test_without_a_model_it_explains() -> None:
    done = CliRunner().invoke(app, ["init"])
    assert done.exit_code == 2
    assert "trtllm-pipeline init Qwen/Qwen2.5-7B-Instruct" in done.stdout
    assert isinstance(CliRunner().invoke(app, ["init", "--json"]).exception, UsageError)


def test_nothing_is_overwritten_unless_forced() -> None:
    made = init(model())
    recipe = Path(made["recipe"])
    first = recipe.read_text()
    recipe.write_text("mine")
    assert "is there already" in refusal("model").what
    Path("stopgap-heldout.jsonl").write_text("mine too")
    assert refusal("model", "--output", "new.yaml").where == "stopgap-heldout.jsonl"
    init("model", "--force")
    assert recipe.read_text() == first
    assert read_texts(Path("stopgap-heldout.jsonl"))
    # The texts of another recipe are the same ones, and the schema is another version's.
    Path("recipe.schema.json").write_text(schema_text().replace("Unit:", "In"))
    init("model", "--output", "new.yaml")
    Path("recipe.schema.json").write_text("{}")
    assert refusal("model", "--output", "newer.yaml").where == "recipe.schema.json"


def test_the_users_text_is_cut_into_parts_that_share_nothing() -> None:
    texts = [f"Text {number}.\nIt has a line more." for number in range(30)]
    Path("mine.txt").write_text("\n\n".join([*texts, texts[0]]))
    made = init(model(), "--text", "mine.txt")
    planned(made)
    recipe = api.load_recipe(made["recipe"])
    assert recipe.quantize.calibration is not None
    assert recipe.evaluate is not None
    first, last = (
        read_texts(Path(name)) for name in (recipe.quantize.calibration.text, recipe.evaluate.text)
    )
    assert first + last == texts
    assert len(last) == 10
    Path("one.txt").write_text("A text.")
    assert "one text" in refusal("model", "--text", "one.txt", "--output", "o.yaml").what
    Path("two.txt").write_text("Another text.\n\nText 3.\nIt has a line more.")
    options = ("model", "--output", "o.yaml", "--heldout", "two.txt", "--text")
    assert "1 texts of the held-out file" in refusal(*options, "mine.txt").what
    files = init(*options, "one.txt")["files"]
    assert files == ["recipe.schema.json"]
    text = Path("o.yaml").read_text()
    assert "text: one.txt\n" in text
    assert "text: two.txt\n" in text


def test_conversations_are_cut_between_lines_and_kept_whole() -> None:
    lines: list[Any] = [
        {"messages": [{"role": "user", "content": f"é {n}"}, {"role": "assistant", "content": "x"}]}
        for n in range(5)
    ]
    lines += [{**lines[0], "tools": [{"name": "look"}]}, lines[0]]
    Path("mine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "no chat template" in refusal(model(), "--text", "mine.jsonl").what
    Path("model", "chat_template.jinja").write_text("{{ messages[0].content }}")
    recipe = api.load_recipe(init("model", "--text", "mine.jsonl")["recipe"])
    assert recipe.quantize.calibration is not None
    assert recipe.evaluate is not None
    names = recipe.quantize.calibration.text, recipe.evaluate.text
    parts = [[json.loads(line) for line in Path(name).read_text().splitlines()] for name in names]
    # The copy of the first is left out.
    assert parts == [lines[:4], lines[4:6]]


def test_files_go_beside_the_recipe_and_its_paths_begin_there() -> None:
    Path("recipes").mkdir()
    made = init(model(folder="a model: of mine"), "--output", "recipes/mine.yaml")
    planned(made)
    assert made["files"][0] == "recipes/stopgap-calibration.jsonl"
    first, _, rest = Path("recipes/mine.yaml").read_text().partition("\n")
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    assert Path("recipes/recipe.schema.json").read_text() == schema_text()
    assert yaml.safe_load(rest)["model"]["source"] == "../a model: of mine"
    assert yaml.safe_load(rest)["evaluate"]["text"] == "stopgap-heldout.jsonl"
    assert made["name"] == "a-model-of-mine-int4-awq"


def test_every_key_that_is_shown_has_a_comment_from_the_recipes_own_documentation() -> None:
    keys = {key.name: key for key in recipe_keys()}
    assert keys.keys() >= SHOWN
    text = Path(init(model(), "--gpu", "L4")["recipe"]).read_text()
    words = " ".join(line.strip().lstrip("# ") for line in text.splitlines())
    shown = [
        key
        for key in keys.values()
        if not key.section and f" {key.name.rpartition('.')[2]}: " in words
    ]
    assert {key.name for key in shown} >= {name for name in keys if name.startswith(f"{GATES}.")}
    for key in shown:
        if "." in key.name and (key.name in SHOWN or key.name.startswith(GATES)):
            assert first_sentence(key).endswith("."), key.name
    for name in ("evaluate.tokens", "bench.rounds", "serve.kv_cache_free_gpu_mem_fraction"):
        assert first_sentence(keys[name]) in words
    assert "Here: auto is 0.06 (6 %), for 8.03 billion parameters and 4-bit weights." in words
    assert "STOPGAP" in words
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("value", [None, True, 1, 0.5, [1, 8], "auto", "null", "1", "a: b", "ä #"])
def test_a_value_is_read_as_it_was_written(value: Any) -> None:
    text = yaml_value(value)
    assert "\n" not in text
    assert yaml.safe_load(f"key: {text}") == {"key": value}


def test_the_bundled_texts_are_what_their_provenance_says() -> None:
    folder = PROJECT / "pipeline" / "scaffold" / "texts"
    told = (folder / "PROVENANCE.md").read_text()
    parts = []
    for name in ("calibration", "heldout"):
        path = folder / f"{name}.jsonl"
        texts = read_texts(path)
        assert f"| {len(texts)} | {path.stat().st_size:,} |" in told
        parts.append({paragraph for text in texts for paragraph in text.split("\n\n")})
    # Short lines such as "'Exactly so,' said Alice." are in both.
    common = parts[0] & parts[1]
    assert sum(map(len, common)) < 200

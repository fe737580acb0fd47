"""Files of somebody else with any JSON in them: whoever reads them refuses in words, or copes.

Every value that was drawn is in the seed, so that a failure comes again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import api
from pipeline.cli import comparison
from pipeline.errors import PipelineError
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.report.history import line
from pipeline.report.siblings import siblings_of
from pipeline.serving import check_custody, target_of, warning_of
from pipeline.source.lines import read_texts
from pipeline.source.prompts import read_prompts
from pipeline.stages import source
from pipeline.stages.base import StageContext
from pipeline.store.build_dir import BuildDir
from pipeline.store.lock import read_lock
from pipeline.store.retention import inventory
from pipeline.store.store import Store
from pipeline.targets.tensorrt.build.engine import read_config, read_engine_manifest
from pipeline.targets.tensorrt.lora.adapter import AdapterError, read_adapter
from pipeline.targets.tensorrt.plan.draft import DraftError, read_draft

from ..conftest import DEMO_MODEL, PROJECT
from .ladder.support import report

PATIENCE_S = 60
DRAWN = 30
"""Files with one wrong value, of each kind of file."""

# As texts, because half of them cannot be written by json.dumps.
VALUES = (
    *("null", "true", "false", "0", "-1", "7", "0.5", "-0.0", "1e999", "-1e999", "NaN", "Infinity"),
    *('""', '"x"', '"7"', '"\\u0000"', '"\\ud800"', '"../../../etc/passwd"', f'"{"a" * 5000}"'),
    *("[]", "{}", "[null]", "[[]]", '{"": null}', '{"type": 7}', "[1, 2, 3]", '["a", 7]'),
    *("9" * 30, "9" * 400, "9" * 5000, str(2**31), str(-(2**63)), "1" + "0" * 60, "1e308"),
    *("[" * 60 + "]" * 60, "[" * 900 + "]" * 900, "[" * 100_000, '{"a":' * 100_000),
)
WHOLE: tuple[bytes, ...] = (
    *(value.encode() for value in VALUES),
    *(b"", b" ", b"{", b"\xff\xfe\x00", b"\x00", b'{"a": 1} x', b"'a'", b'{"a": 1, "a": 2}'),
)


def _drawn(seed: int, content: Any) -> bytes:
    """The content with one value, anywhere in it, replaced."""
    draw = random.Random(seed)
    mark = "\ue000evil"
    changed = json.loads(json.dumps(content))
    node = changed
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw.choice(keys)
        inner = node[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.7:
            node = inner
            continue
        node[key] = mark
        break
    return (
        json.dumps(changed, ensure_ascii=False).replace(f'"{mark}"', draw.choice(VALUES)).encode()
    )


@contextmanager
def _in_time() -> Iterator[None]:
    def hangs(_number: int, _frame: object) -> None:
        raise TimeoutError("it hangs")

    kept = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)


def _try(
    path: Path,
    content: Any,
    reads: Callable[[], object],
    *errors: type[Exception],
    step: int = 1,
) -> int:
    """Writes all kinds of nonsense into a file and reads it; returns how often it was refused.

    With ``step`` only each so-many-th is tried, where a reading takes long.

    Any exception but those that are meant for people goes through and fails the test.
    """
    before, refused, longest = path.read_bytes(), 0, 0
    path.unlink()  # it may be a link to the original
    nonsense = [*WHOLE, *(_drawn(seed, content) for seed in range(DRAWN))]
    for data in nonsense[::step]:
        path.write_bytes(data)
        try:
            with _in_time():
                reads()
        except (PipelineError, *errors) as error:
            refused += 1
            longest = max(longest, len(str(error)))
        except Exception as error:
            error.add_note(f"{path.name}: {data[:200]!r}")
            raise
    assert longest < 4000, "a message fills the screen"
    path.write_bytes(before)
    reads()  # or whatever was refused above would say nothing
    return refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Recipe:
    return load_recipe(PROJECT / "configs" / "demo.yaml", [f"model.source={model}"])


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("config.json", 15),
        ("generation_config.json", 10),
        ("tokenizer_config.json", 5),
        ("tokenizer.json", 0),  # transformers refuses it, when it is loaded
        ("model.safetensors.index.json", 10),
    ],
)
def test_a_models_files(name: str, least: int, model: Path, recipe: Recipe, tmp_path: Path) -> None:
    if name.endswith("index.json"):
        (model / "model.safetensors").rename(model / "part.safetensors")
        header = (model / "part.safetensors").read_bytes()
        length = int.from_bytes(header[:8], "little")
        names = [key for key in json.loads(header[8 : 8 + length]) if key != "__metadata__"]
        (model / name).write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")})
        )
    output = tmp_path / "output"

    def plan_and_fetch() -> None:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        try:
            api.plan(recipe, tmp_path / "build")
        finally:
            source.run(StageContext(recipe, {}, output, Silent()))

    content = json.loads((model / name).read_text(encoding="utf-8"))
    if name == "tokenizer.json":  # most of it is one vocabulary
        content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:20])
        content["model"]["merges"] = content["model"]["merges"][:5]
    assert _try(model / name, content, plan_and_fetch, step=3) >= least


def _store(tmp_path: Path) -> tuple[Store, Path]:
    store = Store(tmp_path / "build" / "store")
    with store.workspace("repository", "k") as folder:
        (folder / "notes.txt").write_text("no model")
        facts = {"target": "openvino", "sizes": [1, 2.5], "models": {"a": None}}
        made = store.publish(
            folder, stage="repository", key="k", material={}, inputs={}, facts=facts, seconds=0
        )
    return store, made.path


def test_the_manifest_of_a_repository(tmp_path: Path) -> None:
    store, folder = _store(tmp_path)
    content = json.loads((folder / "artifact.json").read_text())

    def read() -> None:
        inventory(BuildDir(tmp_path / "build"))
        assert store.get("repository", "k") != (None, None)
        store.verify()
        warning_of(folder)
        try:
            check_custody(folder)
        finally:
            target_of(folder)

    assert _try(folder / "artifact.json", content, read) > 50


def test_what_lies_beside_a_run(tmp_path: Path, recipe: Recipe) -> None:
    lock = tmp_path / "build" / recipe.name / "lock.json"
    lock.parent.mkdir(parents=True)
    entry = {"key": "a" * 64, "digest": "b" * 64, "material": {"a": {"b": 1}}}
    content = {"schema": 1, "stages": dict.fromkeys(("source", "quantize"), entry)}
    lock.write_text(json.dumps(content))

    def read() -> None:
        read_lock(lock)
        api.plan(recipe, tmp_path / "build")

    # Nobody needs it: what cannot be used is as if it were not there.
    assert _try(lock, content, read, step=4) == 0


def test_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, other = report("mine", "int4_awq"), report("other", "int8_sq")
    for name, content in (("mine", mine), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(content))
    folder = tmp_path / "other"

    def read() -> None:
        siblings_of(mine, tmp_path / "mine")
        for form in ("text", "json", "md"):
            comparison.show_finished([tmp_path / "mine", folder], form)

    assert _try(folder / "report.json", other, read) > 40
    capsys.readouterr()


def test_a_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = line(report("t", "int4_awq"))
    assert made is not None
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(made) + "\n")

    def read() -> None:
        for form in ("text", "json", "md", "csv"):
            comparison.show_history([tmp_path], form)

    assert _try(path, made, read) > 40
    capsys.readouterr()


@pytest.mark.parametrize("reads", [read_texts, read_prompts])
def test_lines_of_texts(reads: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": "Once", "prompt": "Once"}, {"text": "Twice", "prompt": "Twice"}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert _try(path, rows[0], lambda: reads(path)) > 40


def test_an_adapter(tmp_path: Path) -> None:
    from .tensorrt.test_lora import CONFIG, write

    folder = write(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    assert _try(path, CONFIG, lambda: read_adapter(folder), AdapterError) > 40


ENGINE = {
    "version": "1.2.1",
    "pretrained_config": {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 32,
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "head_size": None,
        "mapping": {"world_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    },
    "build_config": {"max_seq_len": 64, "max_batch_size": 4, "max_num_tokens": 64},
}


def test_an_engine_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ENGINE))
    assert _try(tmp_path / "config.json", ENGINE, lambda: read_config(tmp_path)) > 40
    manifest = {"schema": 1, "gpu": {"name": "x"}, "container": {"image": "i"}, "key": {"a": 1}}
    (tmp_path / "engine.json").write_text(json.dumps(manifest))
    assert _try(tmp_path / "engine.json", manifest, lambda: read_engine_manifest(tmp_path)) > 40


def test_a_draft(tmp_path: Path) -> None:
    engine = tmp_path / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    (tmp_path / "artifact.json").write_text("{}")
    (engine.parents[1] / "config.pbtxt").write_text('backend: "tensorrtllm"\n')
    (engine / "rank0.engine").write_bytes(b"x")
    (engine / "config.json").write_text(json.dumps(ENGINE))
    assert _try(engine / "config.json", ENGINE, lambda: read_draft(tmp_path), DraftError) > 40


def test_aliases_that_unfold_without_end(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    (tmp_path / "r.yaml").write_text("\n".join(rows))
    with _in_time(), pytest.raises(PipelineError, match="unfold to more than 100000 values"):
        load_recipe(tmp_path / "r.yaml")
    text = (PROJECT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    (tmp_path / "fine.yaml").write_text(text + "\n")
    for value in VALUES:
        with _in_time(), pytest.raises(PipelineError, match=r"name|quantize"):
            load_recipe(tmp_path / "fine.yaml", [f"quantize={value}", "name=7"])


def test_a_recipe_with_any_value_anywhere(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "schema": 1,
        "name": "t",
        "model": {"source": str(DEMO_MODEL), "dtype": "float16"},
        "quantize": {"format": "float16"},
        "compile": {"max_seq_len": 64, "max_input_len": 32, "max_batch_size": 4},
        "serve": {"max_queue_size": 4, "decoupled": True},
        "evaluate": {"text": os.devnull, "gates": {"perplexity_increase": 0.1}},
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({**content, "evaluate": None}))
    content["evaluate"]["text"] = str(PROJECT / "examples/tiny_llama/data/heldout.jsonl")
    assert _try(path, content, lambda: api.plan(load_recipe(path), tmp_path / "build"), step=2) > 20

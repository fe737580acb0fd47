"""What decides the key of a stage: what its target reads, and the code that decides its bytes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Annotated

import pytest

from pipeline.recipe.compile import CompileSection
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import ReadBy
from pipeline.recipe.tensorrt import PluginSection
from pipeline.running.planner import STAGES, key_material
from pipeline.source.texts import text_digest
from pipeline.stages import served
from pipeline.stages.base import Stage
from pipeline.targets import TARGETS, get_target
from tests.conftest import PROJECT

STAGE = {stage.name: stage for stage in STAGES}


def recipe(*settings: str) -> Recipe:
    return load_recipe(PROJECT / "configs" / "demo-float16.yaml", settings)


def material(stage: Stage, *settings: str) -> object:
    return key_material(stage, recipe(*settings), {})


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


@pytest.mark.parametrize("name", ["compile", "repository"])
@pytest.mark.parametrize(
    ("target", "setting"),
    [
        ("openvino", "compile.gpu=L4"),
        ("openvino", "compile.tensorrt.workers=2"),
        ("openvino", "compile.tensorrt.plugin_config.user_buffer=true"),
        ("openvino", "serve.cuda_graphs=4"),
        ("tensorrt", "compile.tensorrt.workers=2"),
        ("tensorrt", "compile.openvino.kv_cache_precision=u8"),
    ],
)
def test_what_the_target_does_not_read_builds_nothing_again(
    name: str, target: str, setting: str
) -> None:
    chosen = f"compile.target={target}"
    assert material(STAGE[name], chosen, setting) == material(STAGE[name], chosen)


@pytest.mark.parametrize(
    ("target", "setting"),
    [
        ("openvino", "compile.max_batch_size=8"),
        ("openvino", "compile.openvino.kv_cache_precision=u8"),
        ("tensorrt", "compile.max_batch_size=8"),
        ("tensorrt", "compile.gpu=L4"),
        ("tensorrt", "compile.tensorrt.gather_context_logits=true"),
        ("tensorrt", "compile.tensorrt.plugin_config.user_buffer=true"),
    ],
)
def test_what_the_target_reads_builds_the_engine_again(target: str, setting: str) -> None:
    chosen, stage = f"compile.target={target}", STAGE["compile"]
    assert material(stage, chosen, setting) != material(stage, chosen)


@pytest.mark.parametrize("target", TARGETS)
def test_options_of_a_new_target_build_no_engine_of_another_again(target: str) -> None:
    class More(CompileSection):
        third: Annotated[PluginSection, ReadBy("third")] = PluginSection()
        shared: int = 1
        some: Annotated[int, ReadBy("third", target)] = 2

    before = recipe(f"compile.target={target}")
    after = before.model_copy(update={"compile": More(**dict(before.compile))})
    added = get_target(target).section(after)["compile"]
    assert added.pop("shared") == 1
    assert added.pop("some") == 2
    assert added == get_target(target).section(before)["compile"]


def test_a_section_has_the_names_of_the_recipe() -> None:
    cpu = get_target("openvino").section(recipe())
    gpu = get_target("tensorrt").section(recipe("compile.target=tensorrt"))
    assert {"openvino", "target", "max_seq_len"} <= cpu["compile"].keys()
    assert {"tensorrt", "target", "max_seq_len"} <= gpu["compile"].keys()


@pytest.mark.parametrize(
    ("stage", "file", "counts"),
    [
        ("repository", "triton/contract.py", True),
        ("repository", "triton/wiring.py", True),
        ("repository", "targets/openvino/target.py", True),
        ("repository", "targets/tensorrt/target.py", False),
        ("repository", "source/tokenizer.py", True),
        ("repository", "source/probes.py", True),
        ("repository", "source/end_ids.py", True),
        ("repository", "source/chat_template.py", True),
        ("repository", "source/special_tokens.py", True),
        ("repository", "models/architectures.py", True),
        ("repository", "verify/check.py", False),
        ("verify", "triton/contract.py", True),
        ("verify", "verify/check.py", True),
        ("verify", "source/probes.py", True),
        ("verify", "source/special_tokens.py", True),
        ("verify", "bench/load.py", False),
        ("bench", "triton/contract.py", True),
        ("bench", "bench/load.py", True),
        ("bench", "verify/check.py", False),
    ],
)
def test_the_code_that_decides_the_bytes_is_part_of_the_key(
    stage: str, file: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pipeline"
    shutil.copytree(PROJECT / "pipeline", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(served, "PACKAGE", package)
    before = material(STAGE[stage])
    with (package / file).open("a", encoding="utf-8") as code:
        code.write("# changed\n")
    assert (material(STAGE[stage]) != before) is counts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.txt", b"One\n\n  <s>Two"),
        ("texts.txt", b"\xef\xbb\xbf<s>One"),
        ("texts.jsonl", b'{"text": "[INST] Hello"}'),
        ("texts.jsonl", rb'{"text": "\n \t<s>Hello"}'),
        ("texts.jsonl", rb'{"text": "\u003cs\u003eHello"}'),
    ],
)
def test_a_text_that_may_begin_with_a_special_token_has_another_key_than_it_had(
    name: str, content: bytes, tmp_path: Path
) -> None:
    """It had two of them before; whoever has an artifact from then gets another one."""
    path = tmp_path / name
    path.write_bytes(content)
    digest = text_digest(recipe(f"evaluate.text={path}"), "evaluate.text")
    assert digest != hashlib.sha256(content).hexdigest()


def test_other_texts_keep_their_key(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    content = rb'{"text": "Once \u003e [1] <s>"}'
    path.write_bytes(content)
    digest = text_digest(recipe(f"evaluate.text={path}"), "evaluate.text")
    assert digest == hashlib.sha256(content).hexdigest()

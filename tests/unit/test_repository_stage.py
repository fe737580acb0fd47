from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import RepositoryError
from pipeline.progress import Silent
from pipeline.stages import repository as stage
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
from tests.conftest import DEMO_MODEL, PROJECT
from tests.unit.triton.demo import ENGINE, demo_recipe, write_engine

MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "model_repo"
    for model in MODELS:
        (root / model / "__pycache__").mkdir(parents=True)
        (root / model / "model.py").write_text(f"# {model}\n")
        (root / model / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"cache")
        (root / model / "notes.txt").write_text("not a module")
    (root / "tensorrt_llm_bls" / "lib").mkdir()
    (root / "tensorrt_llm_bls" / "lib" / "decode.py").write_text("# helper\n")
    for model in ("preprocessing", "tensorrt_llm_bls"):
        # The stage compares tokens through the files that will serve them.
        for path in (PROJECT / "model_repo" / model).glob("*.py"):
            if path.name != "model.py":
                shutil.copyfile(path, root / model / path.name)
    monkeypatch.setattr(stage, "model_sources", lambda: root)
    return root


@pytest.fixture
def context(tmp_path: Path, sources: Path) -> StageContext:
    snapshot = tmp_path / "source"
    snapshot.mkdir()
    shutil.copyfile(DEMO_MODEL / "tokenizer.json", snapshot / "tokenizer.json")
    (snapshot / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    (snapshot / "config.json").write_text(
        json.dumps({"eos_token_id": [2, 3], "bos_token_id": None, "vocab_size": 10})
    )
    (snapshot / "model.safetensors").write_bytes(b"weights")
    engine = tmp_path / "engine"
    write_engine(engine)
    (engine / "artifact.json").write_text("{}")
    output = tmp_path / "output"
    output.mkdir()
    inputs = {
        name: Artifact(name, "key", "digest", path, {})
        for name, path in (("source", snapshot), ("compile", engine))
    }
    return StageContext(demo_recipe(), inputs, output, Silent())


def test_assembles_exactly_what_is_needed(context: StageContext) -> None:
    facts = stage.run(context)
    files = {
        p.relative_to(context.output).as_posix() for p in context.output.rglob("*") if p.is_file()
    }
    assert files == {
        *("provenance.intoto.json", "sbom.cdx.json"),
        *(f"{model}/config.pbtxt" for model in (*MODELS, "ensemble")),
        *(f"{model}/1/model.py" for model in MODELS),
        *(
            f"{model}/1/{path.name}"
            for model in ("preprocessing", "tensorrt_llm_bls")
            for path in (PROJECT / "model_repo" / model).glob("*.py")
        ),
        "tensorrt_llm_bls/1/lib/decode.py",
        "ensemble/1/.keep",
        "preprocessing/1/tokenizer/probes.json",
        "preprocessing/1/tokenizer/tokenizer.json",
        "preprocessing/1/tokenizer/tokenizer_config.json",
        "preprocessing/1/tokenizer/generation_config.json",
        "tensorrt_llm/1/engine/config.json",
        "tensorrt_llm/1/engine/openvino_model.xml",
        "tensorrt_llm/1/engine/openvino_model.bin",
    }
    assert facts["files"] == len(files)
    assert facts["models"] == sorted((*MODELS, "ensemble"))


def test_special_ids_come_from_config_json_when_there_is_no_generation_config(
    context: StageContext,
) -> None:
    stage.run(context)
    path = context.output / "preprocessing/1/tokenizer/generation_config.json"
    assert json.loads(path.read_text()) == {"eos_token_id": [2, 3]}


def test_generation_config_gets_every_end_id_and_keeps_the_rest(context: StageContext) -> None:
    source = context.inputs["source"].path
    text = '{"eos_token_id": 2, "temperature": 0.6, "pad_token_id": 2}'
    (source / "generation_config.json").write_text(text)
    (source / "config.json").write_text('{"eos_token_id": [0], "vocab_size": 10}')
    (source / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}'
    )
    stage.run(context)
    path = context.output / "preprocessing/1/tokenizer/generation_config.json"
    # vLLM's rule: those of generation_config.json and the tokenizer's own.
    assert json.loads(path.read_text()) == {
        "eos_token_id": [2, 0, 1],
        "temperature": 0.6,
        "pad_token_id": 2,
    }


def test_a_model_without_end_ids_names_none(context: StageContext) -> None:
    source = context.inputs["source"].path
    (source / "config.json").write_text('{"eos_token_id": null, "bos_token_id": 3}')
    stage.run(context)
    path = context.output / "preprocessing/1/tokenizer/generation_config.json"
    assert json.loads(path.read_text()) == {"bos_token_id": 3}


def test_a_missing_engine_file_fails_the_stage(context: StageContext) -> None:
    (context.inputs["compile"].path / "openvino_model.bin").unlink()
    with pytest.raises(RepositoryError, match=r"engine/openvino_model\.bin is missing"):
        stage.run(context)


def test_an_engine_without_config_fails_the_stage(context: StageContext) -> None:
    (context.inputs["compile"].path / "config.json").unlink()
    with pytest.raises(RepositoryError, match=r"the engine's config\.json cannot be read"):
        stage.run(context)


def test_the_models_are_whole_without_the_package(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real files: what a model imports beside it is beside it, as a file of its own."""
    monkeypatch.undo()
    stage.run(context)
    modules = list(context.output.rglob("*.py"))
    assert {path.parent.parent.name for path in modules} == set(MODELS)
    for path in modules:
        assert not path.is_symlink()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert (path.parent / f"{node.module}.py").is_file(), f"{path}: {node.module}"
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names]
                assert not any(str(name).startswith("pipeline") for name in names)


def test_it_says_that_it_needs_transformers() -> None:
    assert ("transformers", "quantize") in stage.STAGE.needs(demo_recipe())


def test_a_changed_model_source_changes_the_key(sources: Path) -> None:
    before = stage.material(demo_recipe())
    (sources / "tensorrt_llm_bls" / "lib" / "decode.py").write_text("# changed\n")
    assert stage.material(demo_recipe()) != before
    (sources / "tensorrt_llm_bls" / "lib" / "decode.py").write_text("# helper\n")
    (sources / "preprocessing" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"other")
    assert stage.material(demo_recipe()) == before


def test_max_batch_size_follows_the_engine(context: StageContext) -> None:
    smaller = {**ENGINE, "build_config": {"max_batch_size": 2}}
    (context.inputs["compile"].path / "config.json").write_text(json.dumps(smaller))
    stage.run(context)
    assert "max_batch_size: 2\n" in (context.output / "ensemble/config.pbtxt").read_text()

"""What the validator says about repositories for the C++ backend, each broken in one place."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import RepositoryError, UnsupportedError
from pipeline.progress import Silent
from pipeline.recipe.tensorrt import LoraSection
from pipeline.stages import repository as stage
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
from pipeline.targets import get_target
from pipeline.triton import validate
from pipeline.triton.parameters import local_path
from tests.conftest import DEMO_MODEL
from tests.unit.tensorrt import test_lora as lora
from tests.unit.triton import tensorrt
from tests.unit.triton.tensorrt import QWEN_7B

_ENGINE_PROBLEMS = get_target("tensorrt").engine_problems
check_repository = partial(validate.check_repository, engine_problems=_ENGINE_PROBLEMS)
problems = partial(validate.problems, engine_problems=_ENGINE_PROBLEMS)

ENGINE = "tensorrt_llm/1/engine"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensorrt.write_repository(tmp_path_factory.mktemp("trt") / "repository", QWEN_7B)


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "repository"))


def test_the_generated_repository_is_accepted(repository: Path) -> None:
    assert problems(repository) == []


@pytest.mark.parametrize(
    ("value", "relative"),
    [
        ("/models/tensorrt_llm/1/engine", "tensorrt_llm/1/engine"),
        ("preprocessing/1/tokenizer", "preprocessing/1/tokenizer"),
    ],
)
def test_the_mount_point_is_the_repository(tmp_path: Path, value: str, relative: str) -> None:
    assert local_path(tmp_path, value) == tmp_path / relative


def test_other_absolute_paths_stay(tmp_path: Path) -> None:
    assert local_path(tmp_path, "/models-2/engine") == Path("/models-2/engine")


def _parameter(name: str, value: str | None) -> Callable[[Path], object]:
    def edit(repository: Path) -> None:
        path = repository / "tensorrt_llm/config.pbtxt"
        config = text_format.Parse(path.read_text(), proto.ModelConfig())
        if value is None:
            del config.parameters[name]
        else:
            config.parameters[name].string_value = value
        path.write_text(text_format.MessageToString(config))

    return edit


def _engine(**changes: object) -> Callable[[Path], object]:
    def edit(repository: Path) -> None:
        path = repository / ENGINE / "config.json"
        config = json.loads(path.read_text())
        for name, value in changes.items():
            for part in (
                config,
                config["pretrained_config"],
                config["pretrained_config"]["mapping"],
                config["build_config"],
                config["build_config"]["plugin_config"],
            ):
                if name in part:
                    part[name] = value
        path.write_text(json.dumps(config))

    return edit


CASES: list[tuple[Callable[[Path], object], str]] = [
    (
        _parameter("gpt_model_path", ENGINE),
        r"gpt_model_path: tensorrt_llm/1/engine is relative; the C\+\+ backend looks for it below",
    ),
    (
        _parameter("gpt_model_path", "/models/tensorrt_llm/engine"),
        r"gpt_model_path: /models/tensorrt_llm/engine is not a folder",
    ),
    (_parameter("gpt_model_path", None), r"the parameter gpt_model_path is missing"),
    (_parameter("tokenizer_dir", None), r"the parameter tokenizer_dir is missing; without it"),
    (_parameter("guided_decoding_backend", None), r"guided_decoding_backend is missing; without"),
    (_parameter("xgrammar_tokenizer_info_path", None), r"xgrammar_tokenizer_info_path is missing"),
    (_parameter("guided_decoding_backend", "xgrammar"), r"go together; one of them is empty"),
    (_parameter("guided_decoding_backend", "outlines"), r"is 'outlines', not xgrammar"),
    (
        _parameter("xgrammar_tokenizer_info_path", "/models/tensorrt_llm/1/info.json"),
        r"xgrammar_tokenizer_info_path: there is no /models/tensorrt_llm/1/info\.json",
    ),
    (_parameter("gpt_model_type", "inflight_fused"), r"gpt_model_type is 'inflight_fused', not"),
    (_parameter("max_beam_width", "4"), r"max_beam_width is '4'; the engine was built for 1 to 1"),
    (
        _engine(use_paged_context_fmha=False),
        r"enable_chunked_context must be false: the engine was built without use_paged_context",
    ),
    (
        _engine(gather_context_logits=True),
        r"enable_kv_cache_reuse must be false: the engine gathers context logits",
    ),
    (lambda r: (r / ENGINE / "rank1.engine").unlink(), r"engine/rank1\.engine is missing"),
    (
        lambda r: (r / ENGINE / "rank2.engine").write_text("of another engine"),
        r"engine/rank2\.engine is not one of the engine's 2 ranks",
    ),
    (_parameter("decoding_mode", "lookahead"), r"the engine was not built for lookahead decoding"),
    (
        _engine(speculative_decoding_mode=8),
        r"'top_k_top_p', and the engine was built for lookahead",
    ),
    (
        _parameter("lora_prefetch_dir", "/models/tensorrt_llm/1/lora"),
        r"lora_prefetch_dir: lora has no adapter",
    ),
    (_engine(tp_size=4), r"world_size is 2, but tp_size 4 x pp_size 1 is 4"),
    (_engine(version="1.0.0"), r"built with TensorRT-LLM 1\.0\.0, not 1\.2\.1"),
    (_engine(max_batch_size=8), r"max_batch_size 64 is larger than the 8 sequences"),
    (_engine(plugin_config={}), r"not that of a TensorRT-LLM engine: KeyError"),
]


@pytest.mark.parametrize(("damage", "expected"), CASES, ids=[case[1][:40] for case in CASES])
def test_wrong_repository(
    repository: Path, damage: Callable[[Path], object], expected: str
) -> None:
    damage(repository)
    with pytest.raises(RepositoryError, match="the Triton repository has"):
        check_repository(repository)
    found = problems(repository)
    assert any(re.search(expected, problem) for problem in found), found


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    source, engine, output = (tmp_path / name for name in ("source", "engine", "output"))
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO_MODEL / name, source / name)
    (source / "config.json").write_text('{"eos_token_id": [7, 8]}')
    tensorrt.write_engine(engine, tensorrt.engine_config(QWEN_7B))
    (engine / "engine.json").write_text("{}")
    output.mkdir()
    inputs = {
        name: Artifact(name, "key", "digest", path, {})
        for name, path in (("source", source), ("compile", engine))
    }
    return StageContext(tensorrt.recipe(QWEN_7B), inputs, output, Silent())


def test_the_stage_delivers_engine_and_python_models(context: StageContext) -> None:
    facts = stage.run(context)
    assert facts["target"] == "tensorrt"
    assert "switched_off" not in facts
    model = context.output / "tensorrt_llm"
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    # The C++ backend needs no Python, and a stray model.py would only mislead.
    assert files == {
        "config.pbtxt",
        *(f"1/engine/{name}" for name in ("config.json", "engine.json")),
        *(f"1/engine/rank{rank}.engine" for rank in range(2)),
    }
    for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        assert (context.output / name / "1" / "model.py").is_file()
    ends = (context.output / "preprocessing/1/tokenizer/generation_config.json").read_text()
    # The two of config.json and the demo tokenizer's own, </s>.
    assert json.loads(ends) == {"eos_token_id": [7, 8, 1]}


def test_a_default_that_the_engine_cannot_do_is_a_fact(context: StageContext) -> None:
    path = context.inputs["compile"].path / "config.json"
    config = json.loads(path.read_text())
    config["build_config"]["plugin_config"]["use_paged_context_fmha"] = False
    path.write_text(json.dumps(config))
    facts = stage.run(context)
    assert set(facts["switched_off"]) == {"enable_kv_cache_reuse", "enable_chunked_context"}
    artifact = Artifact("repository", "key", "digest", context.output, facts)
    stage.check(context.recipe, artifact)
    asked = tensorrt.recipe(QWEN_7B, enable_chunked_context=True)
    with pytest.raises(
        UnsupportedError,
        match=r"enable_chunked_context is set, .* does not support it\. The engine",
    ):
        stage.check(asked, artifact)


def test_guided_decoding_gets_the_tokenizer_that_is_served(context: StageContext) -> None:
    guided = tensorrt.recipe(QWEN_7B, guided_decoding="xgrammar")
    stage.run(replace(context, recipe=guided))
    model = context.output / "tensorrt_llm"
    config = text_format.Parse((model / "config.pbtxt").read_text(), proto.ModelConfig())
    path = local_path(
        context.output, config.parameters["xgrammar_tokenizer_info_path"].string_value
    )
    info = json.loads(path.read_text())
    assert info["stop_token_ids"] == [7, 8, 1]
    served = context.output / "preprocessing/1/tokenizer/tokenizer.json"
    assert info["tokenizer_str"] == served.read_text()
    tokenizer = Tokenizer.from_file(str(served))
    assert len(info["encoded_vocab"]) == tokenizer.get_vocab_size()
    bls = text_format.Parse(
        (context.output / "tensorrt_llm_bls/config.pbtxt").read_text(), proto.ModelConfig()
    )
    assert bls.parameters["guided_decoding_backend"].string_value == "xgrammar"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (("4", "3", "4"), None),
        (("4", "3", "5"), r"of 4, 3, 5 guesses 17 tokens, and the engine was built for 15"),
        (("4", "3", ""), r"needs the three sizes"),
    ],
)
def test_lookahead_sizes_fit_the_engine(
    repository: Path, sizes: tuple[str, str, str], expected: str | None
) -> None:
    _engine(speculative_decoding_mode=8, max_draft_len=15)(repository)
    _parameter("decoding_mode", "lookahead")(repository)
    for name, size in zip(("window", "ngram", "verification_set"), sizes, strict=True):
        _parameter(f"lookahead_{name}_size", size)(repository)
    found = problems(repository)
    assert len(found) == (expected is not None)
    assert expected is None or re.search(expected, found[0])


def test_adapters_lie_where_the_backend_looks_for_them(
    context: StageContext, tmp_path: Path
) -> None:
    # peftCacheManager.cpp, prefetchLoraWeights: DIR/TASK/model.lora_{weights,config}.npy.
    adapter = lora.write(tmp_path / "adapter")
    path = context.inputs["compile"].path / "config.json"
    config = json.loads(path.read_text())
    modules = ["attn_q", "attn_k", "attn_v"]
    config["build_config"]["plugin_config"]["lora_plugin"] = "auto"
    config["build_config"]["lora_config"] = {"lora_target_modules": modules, "max_lora_rank": 64}
    path.write_text(json.dumps(config))
    plain = tensorrt.recipe(QWEN_7B, lora_adapters=[str(adapter)])
    options = plain.compile.tensorrt.model_copy(update={"lora": LoraSection()})
    section = plain.compile.model_copy(update={"tensorrt": options})
    asked = plain.model_copy(update={"compile": section})
    before = stage.material(asked)
    stage.run(replace(context, recipe=asked))
    folder = context.output / "tensorrt_llm/1/lora/1"
    weights = np.load(folder / "model.lora_weights.npy")
    assert (weights.shape, weights.dtype) == ((1, 6, 20), np.float16)
    assert np.load(folder / "model.lora_config.npy").shape == (1, 6, 3)
    bls = (context.output / "tensorrt_llm_bls/config.pbtxt").read_text()
    parameters = text_format.Parse(bls, proto.ModelConfig()).parameters
    assert parameters["lora_task_ids"].string_value == "1"
    lora.write(adapter, lora_alpha=9)
    assert stage.material(asked) != before
    (folder / "model.lora_config.npy").unlink()
    (folder.parent / "sql").mkdir()
    found = " ".join(problems(context.output))
    assert "lora/1/model.lora_config.npy is missing" in found
    assert "sql is not a task id" in found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, r"Adapters may change attn_q, attn_k, attn_v, and it was built for no adapters"),
        ({"max_lora_rank": 8}, r"a rank of up to 64, and it has 8"),
    ],
)
def test_an_engine_of_other_adapters_is_not_served(
    changes: dict[str, int], reason: str, context: StageContext
) -> None:
    if changes:
        path = context.inputs["compile"].path / "config.json"
        config = json.loads(path.read_text())
        modules = ["attn_q", "attn_k", "attn_v"]
        config["build_config"]["plugin_config"]["lora_plugin"] = "auto"
        config["build_config"]["lora_config"] = {"lora_target_modules": modules, **changes}
        path.write_text(json.dumps(config))
    plain = tensorrt.recipe(QWEN_7B)
    options = plain.compile.tensorrt.model_copy(update={"lora": LoraSection()})
    section = plain.compile.model_copy(update={"tensorrt": options})
    asked = plain.model_copy(update={"compile": section})
    with pytest.raises(RepositoryError, match=reason):
        stage.run(replace(context, recipe=asked))

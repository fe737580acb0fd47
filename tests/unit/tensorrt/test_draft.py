"""Draft-target speculation in the pre-flight and in the repository.

The flags, names and limits are those of upstream's examples/draft_target_model/README.md; the
draft's memory is counted by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError, UnsupportedError
from pipeline.targets import get_target
from pipeline.targets.tensorrt.gpus import GIB
from pipeline.targets.tensorrt.plan.draft import read_draft
from pipeline.targets.tensorrt.plan.lines import preview_lines
from pipeline.targets.tensorrt.plan.preview import refuse_errors
from tests.unit.triton import tensorrt

from .recipes import model, preview, recipe

LLAMA = "llama-3.1-8b"
CACHE = "serve.max_tokens_in_paged_kv_cache=65536"
TARGET = "compile.tensorrt.draft={max_draft_len: 5}"
FLOAT16 = ("quantize.format=float16", CACHE, TARGET)


def write_draft(
    folder: Path,
    parameters: dict[str, str] | None = None,
    model: dict[str, Any] | None = None,
    **build: Any,
) -> str:
    """A draft's repository of two layers, with some of it changed."""
    tensorrt.write_repository(folder)
    (folder / "artifact.json").write_text("{}")
    engine = folder / "tensorrt_llm/1/engine/config.json"
    config = json.loads(engine.read_text())
    config["pretrained_config"] |= {
        "num_hidden_layers": 2,
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        **(model or {}),
    }
    config["build_config"] |= build
    engine.write_text(json.dumps(config))
    place = folder / "tensorrt_llm/config.pbtxt"
    text = place.read_text()
    given = {"max_tokens_in_paged_kv_cache": "65536"} | (parameters or {})
    for name, value in given.items():
        if f'key: "{name}"' in text:
            head, _, tail = text.partition(f'key: "{name}"')
            old, rest = tail.split("string_value: ", 1)
            text = f'{head}key: "{name}"{old}string_value: "{value}"{rest[rest.index(chr(10)) :]}'
        elif value:
            text += f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'
    place.write_text(text)
    return f"serve.draft_repository={folder}"


def test_the_target_is_built_for_external_tokens(tmp_path: Path) -> None:
    """``--speculative_decoding_mode=draft_tokens_external`` and ``--max_draft_len``."""
    draft = write_draft(tmp_path / "draft")
    result = preview(tmp_path, *FLOAT16, draft, "compile.gpu=H100-80GB")
    flags = " ".join(result.requested.flags())
    assert "--speculative_decoding_mode draft_tokens_external --max_draft_len 5" in flags
    assert "--use_paged_context_fmha enable" in flags
    # SpeculativeDecodingMode.DRAFT_TOKENS_EXTERNAL; build.py adds the draft's length to the text's.
    built = result.effective.config.as_dict()
    assert (built["speculative_decoding_mode"], built["max_seq_len"]) == (2, 8192 + 5)
    refuse_errors(recipe(tmp_path, *FLOAT16, draft, "compile.gpu=H100-80GB"), model(LLAMA))


def test_the_memory_of_both_engines(tmp_path: Path) -> None:
    draft = write_draft(tmp_path / "draft")
    engine = tmp_path / "draft/tensorrt_llm/1/engine/rank0.engine"
    engine.write_bytes(bytes(1000))
    gpu = "compile.gpu=H100-80GB"
    result = preview(tmp_path, *FLOAT16, draft, gpu)
    # 2 (keys, values) x 2 layers x 8 heads x 128 x 2 bytes for 65536 tokens.
    cache = 2 * 2 * 8 * 128 * 2 * 65536
    # 8192 tokens a step: 4 x 4096, q, k and v of 6144 rows, 3 x 14336 of the MLP; 64 x the logits.
    step = 8192 * (4 * 4096 + 6144 + 3 * 14336) * 2 + 64 * 128256 * 4
    assert result.memory.draft == 1000 + cache + step + GIB
    plain = preview(tmp_path, *FLOAT16, gpu)
    assert result.memory.fixed - plain.memory.fixed == result.memory.draft
    assert any(line.startswith("  draft model ") for line in preview_lines(result))
    assert not any("draft model " in line for line in preview_lines(plain) if "GiB" in line)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["quantize.format=int4_awq"], "does not go with W4A16_AWQ.*float16, bfloat16 and FP8"),
        (["quantize.format=fp8", "quantize.kv_cache=int8"], "with an INT8 KV cache"),
        (["compile.tensor_parallel=2"], "on one GPU only"),
        (["compile.gpu=T4"], "does not run on T4"),
        (["serve.enable_kv_cache_reuse=false"], "needs KV cache reuse"),
        (["compile.tensorrt.gather_context_logits=true"], "prompt logits do not go with guessed"),
        (
            ["serve.enable_chunked_context=false", "compile.max_num_tokens=4096"],
            "needs chunked context here.*4096 tokens",
        ),
        (["serve.max_tokens_in_paged_kv_cache=null"], "the KV cache of this one has no size"),
        (["compile.tensorrt.draft=null"], "built without room for guessed tokens"),
        (["serve.draft_repository=nowhere"], "nowhere has no draft model.*No such file"),
    ],
)
def test_what_the_target_cannot_do_is_refused(
    tmp_path: Path, overrides: list[str], reason: str
) -> None:
    draft = write_draft(tmp_path / "draft")
    with pytest.raises(UnsupportedError, match=reason):
        refuse_errors(recipe(tmp_path, *FLOAT16, draft, *overrides), model(LLAMA))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"vocab_size": 32000}}, "It has 32000 tokens, and this model has 128256"),
        ({"max_seq_len": 4096}, "4096 tokens at most, and those of this engine 8192"),
        ({"speculative_decoding_mode": 8}, "engine speculates itself"),
        ({"model": {"quantization": {"quant_algo": "W4A16_AWQ"}}}, "It is W4A16_AWQ"),
        ({"parameters": {"enable_kv_cache_reuse": "false"}}, "does not reuse its KV cache"),
        (
            {"parameters": {"enable_chunked_context": "false"}, "max_num_tokens": 2048},
            "takes prompts of 2048 tokens only",
        ),
        ({"parameters": {"max_tokens_in_paged_kv_cache": ""}}, "of the draft has no size"),
        (
            {"model": {"mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}}},
            "Its engine has 2 ranks",
        ),
        ({"model": {"num_hidden_layers": None}}, "config.json cannot be used \\(TypeError"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    draft = write_draft(tmp_path / "draft", **changes)
    with pytest.raises(UnsupportedError, match=reason):
        refuse_errors(recipe(tmp_path, *FLOAT16, draft), model(LLAMA))


def test_a_repository_of_another_target_is_no_draft(tmp_path: Path) -> None:
    draft = write_draft(tmp_path / "draft")
    place = tmp_path / "draft/tensorrt_llm/config.pbtxt"
    place.write_text(place.read_text().replace('"tensorrtllm"', '"python"'))
    with pytest.raises(UnsupportedError, match="runs on another backend than tensorrtllm"):
        refuse_errors(recipe(tmp_path, *FLOAT16, draft), model(LLAMA))


def test_a_target_without_a_draft_is_only_warned_of(tmp_path: Path) -> None:
    result = preview(tmp_path, *FLOAT16)
    (finding,) = [f for f in result.effective.findings if "nothing makes any" in f.what]
    assert finding.severity == "warning"


def test_two_ways_to_guess_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Lookahead and draft are two ways to guess"):
        recipe(tmp_path, TARGET, "compile.tensorrt.lookahead={window_size: 4}")


def test_parameters_are_read_as_protobuf_reads_them(tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as proto

    write_draft(tmp_path / "draft")
    text = (tmp_path / "draft/tensorrt_llm/config.pbtxt").read_text()
    parsed = text_format.Parse(text, proto.ModelConfig())
    expected = {name: value.string_value for name, value in parsed.parameters.items()}
    assert read_draft(tmp_path / "draft").parameters == expected
    assert len(expected) > 20


def test_the_cpu_target_refuses_a_draft(tmp_path: Path) -> None:
    settings = recipe(tmp_path, "compile.target=openvino", "serve.draft_repository=somewhere")
    with pytest.raises(UnsupportedError, match=r"no draft_repository.*gives other texts"):
        get_target("openvino").check(settings, model(LLAMA))

"""The draft model's repository, and whether its engine can guess tokens for the recipe's.

Upstream's rules are in examples/draft_target_model/README.md (support matrix, paged context
attention, KV cache reuse) and in batch_manager/trtGptModelInflightBatching.cpp, which refuses a
target engine without KV cache reuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.formats import FORMATS, INT8_KV_CACHE
from pipeline.reading.files import read_utf8
from pipeline.reading.json_text import read_json
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import MANIFEST
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.gpus import Gpu
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts
from pipeline.targets.tensorrt.plan.features import SPECULATING_FORMATS
from pipeline.targets.tensorrt.plan.memory import RUNTIME_BYTES
from pipeline.targets.tensorrt.speculation import SPECULATION
from pipeline.triton.contract import CPP_BACKEND
from pipeline.triton.parameters import ENGINE_DIR
from pipeline.triton.tensors import ENGINE

TARGET, DRAFT = "compile.tensorrt.draft", "serve.draft_repository"
CACHE = "max_tokens_in_paged_kv_cache"
MIN_SM = 80
"""Of the support matrix: compute capability 8.0."""

# As protobuf's text format has them in a config.pbtxt of this tool.
_PARAMETER = re.compile(r'key: "(\w+)"\s+value \{\s*(?:string_value: "([^"]*)")?')
_BACKEND = re.compile(r'^backend: "(\w+)"', re.MULTILINE)


class DraftError(Exception):
    """A repository that has no engine to guess with; the text is why."""


@dataclass(frozen=True)
class Draft:
    """A draft model's engine and how its own repository serves it.

    Attributes:
        repository: The repository.
        parameters: Of its engine model's config.pbtxt, by name.
        config: Its engine's config.json.
        engine_bytes: Size of its engine file.
    """

    repository: Path
    parameters: Mapping[str, str]
    config: Mapping[str, Any]
    engine_bytes: int

    @property
    def build(self) -> Mapping[str, Any]:
        """What its engine was built for."""
        return dict(self.config["build_config"])

    @property
    def model(self) -> Mapping[str, Any]:
        """What its checkpoint says of the model."""
        return dict(self.config["pretrained_config"])

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of its KV cache; None where its recipe leaves that to the free memory."""
        value = self.parameters.get(CACHE, "")
        return int(value) if value.isdecimal() else None

    @property
    def memory(self) -> int:
        """Bytes that it takes on the GPU: engine, KV cache, and estimates of the rest.

        Activations are bounded as those of the recipe's engine are (plan/memory.py).
        """
        model, build = self.model, self.build
        heads, hidden = int(model["num_attention_heads"]), int(model["hidden_size"])
        head = int(model.get("head_size") or hidden // heads)
        kv_heads = int(model.get("num_key_value_heads") or heads)
        quantization = model.get("quantization") or {}
        kv_size = 1 if quantization.get("kv_cache_quant_algo") else 2
        per_token = 2 * int(model["num_hidden_layers"]) * kv_heads * head * kv_size
        qkv, inner = (heads + 2 * kv_heads) * head, int(model["intermediate_size"])
        step = int(build["max_num_tokens"]) * (4 * hidden + qkv + 3 * inner) * 2
        logits = int(build["max_batch_size"]) * int(model["vocab_size"]) * 4
        cache = (self.kv_tokens or 0) * per_token
        return self.engine_bytes + cache + step + logits + RUNTIME_BYTES


def read_draft(repository: Path) -> Draft:
    """Reads what a draft's repository says of its engine.

    Raises:
        DraftError: It is not the repository of a TensorRT-LLM engine of one rank.
    """
    place = repository / ENGINE / "config.pbtxt"
    engine = repository / ENGINE_DIR
    try:
        (repository / MANIFEST).stat()
        text = read_utf8(place)
        backend = _BACKEND.search(text)
        if backend is None or backend[1] != CPP_BACKEND:
            raise DraftError(
                f"its {ENGINE} runs on another backend than {CPP_BACKEND}: its recipe has "
                "another compile.target"
            )
        config = read_json(engine / "config.json")
        draft = Draft(
            repository,
            dict(_PARAMETER.findall(text)),
            config,
            (engine / "rank0.engine").stat().st_size,
        )
        ranks = int(draft.model["mapping"]["world_size"])
        _ = draft.memory, int(draft.build["max_seq_len"])
    except OSError as error:
        raise DraftError(f"{error.filename}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise DraftError(
            f"its engine's config.json cannot be used ({type(error).__name__}: {error})"
        ) from error
    if ranks != 1:
        raise DraftError(f"its engine has {ranks} ranks, and a draft has one")
    return draft


def draft_memory(recipe: Recipe) -> int:
    """Counts the bytes that the recipe's draft takes; 0 without one or for one that is refused."""
    if recipe.serve.draft_repository is None:
        return 0
    try:
        return read_draft(Path(recipe.serve.draft_repository)).memory
    except DraftError:
        return 0  # check_draft says why


def check_draft(
    recipe: Recipe, checkpoint: CheckpointFacts, effective: BuildConfig, gpu: Gpu | None
) -> Iterator[Finding]:
    """Names what keeps the engine from taking guesses, and the draft from giving them.

    Args:
        recipe: Names the draft's repository.
        checkpoint: What is compiled.
        effective: The engine, after upstream's overrides.
        gpu: Where it runs; None where that is not known.
    """
    folder = recipe.serve.draft_repository
    if recipe.compile.tensorrt.draft is None:
        if folder is not None:
            yield Finding(
                "error",
                DRAFT,
                "the engine is built without room for guessed tokens",
                "Only an engine of draft_tokens_external takes the guesses of another one",
                f"Add {TARGET} with max_draft_len, or leave {DRAFT} out",
            )
        return
    yield from _check_target(recipe, checkpoint, effective, gpu)
    if folder is None:
        yield Finding(
            "warning",
            TARGET,
            "the engine takes guesses, and nothing makes any",
            f"{DRAFT} names no draft model; clients would have to send draft_input_ids themselves",
            f"Name the draft's repository in {DRAFT}, or leave {TARGET} out",
        )
        return
    if recipe.serve.max_tokens_in_paged_kv_cache is None:
        yield _unlimited(f"serve.{CACHE}", "this one", "the recipe")
    try:
        draft = read_draft(Path(folder))
    except DraftError as error:
        yield Finding(
            "error",
            DRAFT,
            f"{folder} has no draft model",
            str(error),
            "Name the repository that the draft's own recipe has made, such as "
            "build/NAME/repository; run that recipe first",
        )
        return
    yield from _check_draft(recipe, checkpoint, draft)


def _check_target(
    recipe: Recipe, checkpoint: CheckpointFacts, effective: BuildConfig, gpu: Gpu | None
) -> Iterator[Finding]:
    row, serve = checkpoint.format, recipe.serve
    if (row.quantizes and not row.fp8_weights) or checkpoint.kv_cache_algo == INT8_KV_CACHE:
        cache = " with an INT8 KV cache" if checkpoint.kv_cache_algo == INT8_KV_CACHE else ""
        yield Finding(
            "error",
            TARGET,
            f"draft-target speculation does not go with {checkpoint.quant_algo}{cache}",
            "TensorRT-LLM 1.2 supports it for float16, bfloat16 and FP8 only",
            f"Leave {TARGET} out, or set quantize.format to {SPECULATING_FORMATS} and "
            "quantize.kv_cache to null",
        )
    if checkpoint.world_size > 1:
        yield Finding(
            "error",
            TARGET,
            "draft-target speculation is offered on one GPU only",
            "With several ranks each engine needs processes of its own, which serve does not start",
            "Set compile.tensor_parallel and compile.pipeline_parallel to 1, or leave "
            f"{TARGET} out",
        )
    if gpu is not None and gpu.sm < MIN_SM:
        yield Finding(
            "error",
            "compile.gpu",
            f"draft-target speculation does not run on {gpu.name}",
            "Its support matrix begins at compute capability 8.0",
            f"Choose an Ampere GPU or a newer one, or leave {TARGET} out",
        )
    if effective.gather_context_logits:
        yield Finding(
            "error",
            "compile.tensorrt.gather_context_logits",
            "prompt logits do not go with guessed tokens",
            "trtllm-build refuses gather_context_logits with a draft length",
            "Leave gather_context_logits out; the evaluate stage builds an engine of its own",
        )
    paged = effective.plugin_config.use_paged_context_fmha
    if not (paged and serve.enable_kv_cache_reuse):
        yield Finding(
            "error",
            TARGET,
            "draft-target speculation needs KV cache reuse",
            "Each round sends the whole text as a prompt, and the backend loads no such engine "
            "without the reuse (KV cache block reuse must be enabled)",
            "Set serve.enable_kv_cache_reuse to true"
            if paged
            else "Look at what the plan says of use_paged_context_fmha",
        )
    longest = recipe.compile.max_seq_len - 1
    if not (paged and serve.enable_chunked_context) and effective.max_num_tokens < longest:
        yield Finding(
            "error",
            TARGET,
            "draft-target speculation needs chunked context here",
            "Each round sends the whole text as a prompt, of which a step holds "
            f"{effective.max_num_tokens} tokens",
            "Set serve.enable_chunked_context to true, or compile.max_num_tokens to at least "
            f"{longest}",
        )


def _check_draft(recipe: Recipe, checkpoint: CheckpointFacts, draft: Draft) -> Iterator[Finding]:
    build, model, parameters = draft.build, draft.model, draft.parameters
    if draft.kv_tokens is None:
        yield _unlimited(DRAFT, "the draft", "the draft's recipe")
    size, ours = int(model["vocab_size"]), checkpoint.model.vocab_size
    if size != ours:
        yield _misfit(
            f"it has {size} tokens, and this model has {ours}",
            "Choose a draft of the same family, whose tokenizer is the same",
        )
    length, wanted = int(build["max_seq_len"]), recipe.compile.max_seq_len
    if length < wanted:
        yield _misfit(
            f"its sequences have {length} tokens at most, and those of this engine {wanted}",
            f"Set compile.max_seq_len of its recipe to {wanted}, or lower it here",
        )
    if parameters.get("enable_kv_cache_reuse") != "true":
        yield _misfit(
            "it does not reuse its KV cache, and would compute the whole text in each round",
            "Set serve.enable_kv_cache_reuse of its recipe to true",
        )
    chunked = parameters.get("enable_chunked_context") == "true"
    if not chunked and int(build["max_num_tokens"]) < wanted - 1:
        yield _misfit(
            f"without chunked context it takes prompts of {build['max_num_tokens']} tokens only",
            "Set serve.enable_chunked_context of its recipe to true",
        )
    if int(build.get("speculative_decoding_mode", 1)) != SPECULATION[None]:
        yield _misfit("its engine speculates itself", "Leave lookahead and draft out of its recipe")
    algo = (model.get("quantization") or {}).get("quant_algo")
    allowed = [r.quant_algo for r in FORMATS.values() if r.fp8_weights or not r.quantizes]
    if algo not in (None, *allowed):
        yield _misfit(
            f"it is {algo}, and TensorRT-LLM 1.2 supports float16, bfloat16 and FP8 only",
            f"Set quantize.format of its recipe to {SPECULATING_FORMATS}",
        )


def _misfit(why: str, remedy: str) -> Finding:
    what = "the draft model cannot guess for this one"
    return Finding("error", DRAFT, what, why[:1].upper() + why[1:], remedy)


def _unlimited(key: str, whose: str, recipe: str) -> Finding:
    return Finding(
        "error",
        key,
        f"two engines share the GPU, and the KV cache of {whose} has no size",
        "Without one each takes a share of what is free when it starts, and the first may leave "
        "the other nothing",
        f"Set serve.{CACHE} in {recipe}",
    )

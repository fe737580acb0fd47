"""The ``parameters`` of each config.pbtxt, under NVIDIA's names, from a recipe.

Only the engine model differs between compile targets; :data:`ENGINES` is where a target says how
Triton runs its engine. Paths that Python models read are relative to the repository's root, so that
a repository can be moved or mounted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.recipe import Recipe
from pipeline.targets.tensorrt.serve.backend import BACKEND, build_parameters
from pipeline.targets.tensorrt.serve.engine_facts import TrtEngine
from pipeline.triton.tensors import BLS, ENGINE, POSTPROCESSING, PREPROCESSING

# Requests that wait in tensorrt_llm_bls where the recipe sets no limit; each holds a thread.
UNLIMITED_QUEUE = 256

TOKENIZER_DIR = f"{PREPROCESSING}/1/tokenizer"
ENGINE_DIR = f"{ENGINE}/1/engine"


@dataclass(frozen=True)
class EngineModel:
    """How Triton runs the compiled engine.

    Attributes:
        backend: Triton backend; ``python`` needs a ``model.py``.
        parameters: ``string_value`` parameters of its config.pbtxt.
        switched_off: Why a setting of ``serve`` is false although the recipe says true, by name.
    """

    backend: str
    parameters: Mapping[str, str]
    switched_off: Mapping[str, str] = field(default_factory=dict)


def openvino_engine(recipe: Recipe, _engine: Mapping[str, Any]) -> EngineModel:
    """The Python front of the CPU engine.

    GPU-only parameters (memory fractions, CUDA graphs, LoRA caches) are left out rather than
    accepted and ignored.
    """
    serve = recipe.serve
    parameters = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": ENGINE_DIR,
        "tokenizer_dir": TOKENIZER_DIR,
        "max_beam_width": str(recipe.compile.max_beam_width),
        "batch_scheduler_policy": serve.batch_scheduler_policy,
        "enable_kv_cache_reuse": _flag(serve.enable_kv_cache_reuse),
        "enable_chunked_context": _flag(serve.enable_chunked_context),
        "exclude_input_in_output": _flag(serve.exclude_input_in_output),
        "cancellation_check_period_ms": str(serve.cancellation_check_period_ms),
        "max_queue_size": str(serve.max_queue_size),
    }
    if serve.max_tokens_in_paged_kv_cache is not None:
        parameters["max_tokens_in_paged_kv_cache"] = str(serve.max_tokens_in_paged_kv_cache)
    return EngineModel("python", parameters)


def tensorrt_engine(recipe: Recipe, engine: Mapping[str, Any]) -> EngineModel:
    """The C++ backend of TensorRT-LLM."""
    built = build_parameters(
        recipe,
        TrtEngine.from_config(engine),
        engine_dir=ENGINE_DIR,
        tokenizer_dir=TOKENIZER_DIR,
    )
    return EngineModel(BACKEND, built.values, built.switched_off)


ENGINES: Mapping[str, Callable[[Recipe, Mapping[str, Any]], EngineModel]] = {
    "openvino": openvino_engine,
    "tensorrt": tensorrt_engine,
}
"""How Triton runs the engine of each compile target."""


def engine_model(recipe: Recipe, engine: Mapping[str, Any]) -> EngineModel:
    """How Triton runs the engine of the recipe's compile target.

    Args:
        recipe: ``serve`` and ``compile`` are read.
        engine: The engine directory's ``config.json``.

    Raises:
        UnsupportedError: The target has no Triton repository, or the recipe asks for what the
            engine cannot do.
        RepositoryError: The engine cannot be served.
    """
    target = recipe.compile.target
    if target not in ENGINES:
        raise UnsupportedError(
            f"there is no Triton repository for the target {target}",
            where=recipe.place("compile.target"),
            fix=f"Targets with one: {', '.join(sorted(ENGINES))}",
        )
    return ENGINES[target](recipe, engine)


def model_parameters(recipe: Recipe, engine: EngineModel) -> dict[str, Mapping[str, str]]:
    """The parameters of every model that has some, by model name."""
    return {
        PREPROCESSING: {"tokenizer_dir": TOKENIZER_DIR, "add_special_tokens": "true"},
        ENGINE: engine.parameters,
        POSTPROCESSING: {"tokenizer_dir": TOKENIZER_DIR, "skip_special_tokens": "true"},
        BLS: _bls(recipe),
    }


def _bls(recipe: Recipe) -> dict[str, str]:
    serve = recipe.serve
    # What the engine admits must also find a thread in the model before it.
    waiting = serve.max_queue_size or UNLIMITED_QUEUE
    return {
        "tokenizer_dir": TOKENIZER_DIR,
        # The model always decodes a token with those before it; upstream leaves the choice.
        "accumulate_tokens": "true",
        "exclude_input_in_output": _flag(serve.exclude_input_in_output),
        "cancellation_check_period_ms": str(serve.cancellation_check_period_ms),
        "tensorrt_llm_model_name": ENGINE,
        "max_concurrent_requests": str(recipe.compile.max_batch_size + waiting),
    }


def _flag(value: bool) -> str:
    return "true" if value else "false"

"""The ``parameters`` of each config.pbtxt, under NVIDIA's names, from a recipe.

Only the engine model differs between compile targets; each target says how Triton runs its engine.
Paths that Python models read are relative to the repository's root, so that a repository can be
moved or mounted anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.recipe.schema import Recipe
from pipeline.triton.tensors import BLS, BLS_UNARY, DRAFT, ENGINE, POSTPROCESSING, PREPROCESSING
from pipeline.triton.wiring import ADD_SPECIAL_TOKENS
from trtllm_client import ChatTemplate

# Requests that wait in tensorrt_llm_bls where the recipe sets no limit; each holds a thread.
UNLIMITED_QUEUE = 256

TOKENIZER_DIR = f"{PREPROCESSING}/1/tokenizer"
ENGINE_DIR = f"{ENGINE}/1/engine"
ENGINE_FILES = f"{ENGINE}/1"
"""Where :attr:`EngineModel.files` are."""
DRAFT_ENGINE_DIR = f"{DRAFT}/1/engine"
CHAT_TEMPLATE, CHAT_TEMPLATE_TOKENS = "chat_template", "chat_template_tokens"
"""Parameters of ``preprocessing`` for clients: the Jinja source, and the special tokens' texts as a
JSON object; no model reads them."""
ADAPTERS = "lora_task_ids"
"""The parameter of ``tensorrt_llm_bls`` with the ids of the LoRA adapters that there are."""
MODEL_DIGEST = "model_digest"
"""The parameter of ``preprocessing`` that tells clients which weights are served: the digest of the
checkpoint that the engine was compiled from. No model reads it."""
MOUNT = PurePosixPath("/models")
"""Where the repository is inside a container."""


def local_path(repository: Path, value: str) -> Path:
    """Finds where a path of a config.pbtxt is on this machine.

    Args:
        repository: The repository's root here.
        value: Relative to the root, absolute, or absolute below :data:`MOUNT`.
    """
    path = PurePosixPath(value)
    return repository / (path.relative_to(MOUNT) if path.is_relative_to(MOUNT) else path)


@dataclass(frozen=True)
class DraftModel:
    """An engine that guesses tokens for another one.

    Attributes:
        repository: The repository it was made in.
        parameters: ``string_value`` parameters of its config.pbtxt.
        max_batch_size: Sequences that it decodes together.
        max_draft_len: Tokens that the other engine takes at a time.
    """

    repository: Path
    parameters: Mapping[str, str]
    max_batch_size: int
    max_draft_len: int


@dataclass(frozen=True)
class EngineModel:
    """How Triton runs the compiled engine.

    Attributes:
        backend: Triton backend; ``python`` needs a ``model.py``.
        parameters: ``string_value`` parameters of its config.pbtxt.
        switched_off: Why a setting of ``serve`` is false although the recipe says true, by name.
        greedy: Whether the engine decodes greedily, whatever a request says.
        files: Files beside the engine's folder, by name; each function takes the folder of the
            tokenizer that is served and returns the content.
        lora_task_ids: The adapters that a request may choose.
        draft: What guesses tokens for it; None guesses none.
        scores_prompts: Whether a request may ask for the log-probabilities of its prompt.
        gives_tickets: Whether it can be told that a client of the ensemble has gone.
        front: The folder of our models' sources with its ``model.py``, where its backend is
            ``python``.
    """

    backend: str
    parameters: Mapping[str, str]
    switched_off: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Callable[[Path], bytes]] = field(default_factory=dict)
    lora_task_ids: Sequence[int] = ()
    greedy: bool = False
    draft: DraftModel | None = None
    scores_prompts: bool = False
    gives_tickets: bool = False
    front: str = ENGINE


def chat_parameters(template: ChatTemplate | None) -> dict[str, str]:
    """Returns what ``preprocessing`` says of the model's chat template; empty where it has none.

    Args:
        template: The model's.
    """
    if template is None:
        return {}
    tokens = json.dumps(dict(template.special_tokens), ensure_ascii=False, sort_keys=True)
    return {CHAT_TEMPLATE: template.source, CHAT_TEMPLATE_TOKENS: tokens}


def model_parameters(
    recipe: Recipe,
    engine: EngineModel,
    template: ChatTemplate | None = None,
    model_digest: str | None = None,
) -> dict[str, Mapping[str, str]]:
    """Returns the parameters of every model that has some, by model name.

    Args:
        recipe: ``serve`` and ``compile`` are read.
        engine: How Triton runs the engine.
        template: The model's chat template; None where it has none.
        model_digest: Of the checkpoint; None where it is not known.
    """
    added = recipe.serve.add_special_tokens
    return {
        **({DRAFT: engine.draft.parameters} if engine.draft else {}),
        PREPROCESSING: {
            "tokenizer_dir": TOKENIZER_DIR,
            ADD_SPECIAL_TOKENS: added if isinstance(added, str) else _flag(added),
            **chat_parameters(template),
            **({MODEL_DIGEST: model_digest} if model_digest else {}),
        },
        ENGINE: engine.parameters,
        POSTPROCESSING: {"tokenizer_dir": TOKENIZER_DIR, "skip_special_tokens": "true"},
        BLS: _bls(recipe, engine),
        # Otherwise the model takes its engine's transaction policy for its own.
        BLS_UNARY: {**_bls(recipe, engine), "tensorrt_llm_decoupled": "true"},
    }


def most_requests(recipe: Recipe) -> int:
    """Returns how many requests the text models take at a time; they refuse the others."""
    # What the engine admits must also find a thread in the model before it.
    return recipe.compile.max_batch_size + (recipe.serve.max_queue_size or UNLIMITED_QUEUE)


def _bls(recipe: Recipe, engine: EngineModel) -> dict[str, str]:
    serve = recipe.serve
    guided = {"guided_decoding_backend": serve.guided_decoding} if serve.guided_decoding else {}
    greedy = {"decodes_greedily": "true"} if engine.greedy else {}
    adapters = {ADAPTERS: ",".join(map(str, engine.lora_task_ids))}
    draft = {
        "tensorrt_llm_draft_model_name": DRAFT,
        "max_draft_len": str(engine.draft.max_draft_len if engine.draft else 0),
    }
    return {
        **(draft if engine.draft else {}),
        **(adapters if engine.lora_task_ids else {}),
        **guided,
        **greedy,
        "tokenizer_dir": TOKENIZER_DIR,
        "accumulate_tokens": _flag(serve.accumulate_tokens),
        "exclude_input_in_output": _flag(serve.exclude_input_in_output),
        "include_stop_str_in_output": _flag(serve.include_stop_str_in_output),
        "cancellation_check_period_ms": str(serve.cancellation_check_period_ms),
        "tensorrt_llm_model_name": ENGINE,
        "max_concurrent_requests": str(most_requests(recipe)),
    }


def _flag(value: bool) -> str:
    return "true" if value else "false"

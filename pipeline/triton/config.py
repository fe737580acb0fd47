"""Writes config.pbtxt through Triton's own protobuf message, so that it always parses.

Each text is read back and compared with the message it came from before it is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import RepositoryError
from pipeline.recipe.schema import Recipe
from pipeline.triton.contract import scoring_prompts, served_models, with_tickets
from pipeline.triton.parameters import EngineModel, model_parameters
from pipeline.triton.tensors import (
    BLS,
    BLS_UNARY,
    DRAFT,
    ENGINE,
    ENSEMBLE,
    POSTPROCESSING,
    PREPROCESSING,
    ModelContract,
    Tensor,
)
from trtllm_client import ChatTemplate

HEADER = "# Written by the repository stage: change the recipe, not this file.\n"


def render_configs(
    recipe: Recipe,
    engine: Mapping[str, Any],
    native: EngineModel,
    template: ChatTemplate | None = None,
    model_digest: str | None = None,
) -> dict[str, str]:
    """Renders config.pbtxt for the models of a repository, by model name.

    Args:
        recipe: ``serve`` and ``compile`` are read.
        engine: The engine directory's ``config.json``; ``build_config.max_batch_size`` limits every
            model, because the engine cannot hold more sequences than it was built for.
        native: How Triton runs that engine.
        template: The model's chat template, which clients read from there; None where it has none.
        model_digest: What tells clients which weights are served; None where it is not known.

    Raises:
        RepositoryError: The engine's config.json lacks ``build_config.max_batch_size``.
    """
    max_batch_size = engine_batch_size(engine)
    serve = recipe.serve
    instances = {
        PREPROCESSING: serve.preprocessing_instance_count,
        ENGINE: 1,
        DRAFT: 1,
        POSTPROCESSING: serve.postprocessing_instance_count,
        BLS: serve.bls_instance_count,
        BLS_UNARY: serve.bls_instance_count,
    }
    backend = dict.fromkeys(instances, "python") | dict.fromkeys((ENGINE, DRAFT), native.backend)
    parameters = model_parameters(recipe, native, template, model_digest)
    texts = {}
    models = served_models(serve.decoupled, draft=native.draft is not None)
    for name, contract in models.items():
        size = max_batch_size
        if name == DRAFT and native.draft is not None:
            size = min(size, native.draft.max_batch_size)
        config = _message(_offered(contract, native), size)
        if name != ENSEMBLE:
            config.backend = backend[name]
            config.instance_group.add(count=instances[name], kind=proto.ModelInstanceGroup.KIND_CPU)
            for key, value in parameters[name].items():
                config.parameters[key].string_value = value
        _set_batching(config, serve.max_queue_size)
        texts[name] = to_text(config)
    return texts


def _offered(contract: ModelContract, native: EngineModel) -> ModelContract:
    """A model's contract with what the engine does besides upstream's."""
    if contract.name == ENGINE and native.scores_prompts:
        contract = scoring_prompts(contract)
    return with_tickets(contract) if native.gives_tickets else contract


def engine_batch_size(engine: Mapping[str, Any]) -> int:
    """Reads ``build_config.max_batch_size`` of an engine's config.json.

    Raises:
        RepositoryError: It is missing or not a positive number.
    """
    size = (engine.get("build_config") or {}).get("max_batch_size")
    if not isinstance(size, int) or size < 1:
        raise RepositoryError(
            "the engine does not say how many sequences it decodes together",
            where="engine config.json",
            why=f"build_config.max_batch_size is {size!r}",
            fix="Compile the engine again",
        )
    return size


def to_text(config: proto.ModelConfig) -> str:
    """Writes the message as the text of a config.pbtxt, and reads it back.

    Raises:
        RepositoryError: The text does not read back as the same message.
    """
    text: str = HEADER + text_format.MessageToString(config)
    if text_format.Parse(text, proto.ModelConfig()) != config:
        raise RepositoryError(
            "config.pbtxt does not read back as what was written",
            where=config.name,
            fix="Report this with the versions of protobuf and tritonclient",
        )
    return text


def _message(contract: ModelContract, max_batch_size: int) -> proto.ModelConfig:
    config = proto.ModelConfig(name=contract.name, max_batch_size=max_batch_size)
    for tensor in contract.inputs:
        entry = config.input.add()
        _fill(entry, tensor)
        entry.optional = tensor.optional
        entry.allow_ragged_batch = tensor.ragged
    for tensor in contract.outputs:
        _fill(config.output.add(), tensor)
    if contract.decoupled:
        config.model_transaction_policy.decoupled = True
    if contract.steps:
        config.platform = "ensemble"
    for step in contract.steps:
        entry = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        entry.input_map.update(step.input_map)
        entry.output_map.update(step.output_map)
    return config


def _fill(entry: Any, tensor: Tensor) -> None:
    entry.name = tensor.name
    entry.data_type = proto.DataType.Value(tensor.data_type)
    entry.dims.extend(tensor.dims)
    if tensor.reshape is not None:
        # An empty reshape is a scalar; it must be present although it has no elements.
        entry.reshape.SetInParent()
        entry.reshape.shape.extend(tensor.reshape)


def _set_batching(config: proto.ModelConfig, max_queue_size: int) -> None:
    # The C++ backend hands this queue's limit to its executor. The Python models bound their own
    # queues, and Triton 2.51's batcher holds bursts of requests to them back for half a second.
    if config.name in (ENGINE, DRAFT) and config.backend != "python":
        config.dynamic_batching.preferred_batch_size.append(config.max_batch_size)
        config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size

"""What a running server says of its models: the answer to gRPC ``ModelConfig``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

MODELS = (
    "ensemble",
    "tensorrt_llm_bls",
    "tensorrt_llm_bls_unary",
    "tensorrt_llm",
    "preprocessing",
    "postprocessing",
)


@dataclass(frozen=True)
class Input:
    """One declared tensor; ``datatype`` is the wire's name, ``dims`` has no batch in front."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool


@dataclass(frozen=True)
class Model:
    """One served model."""

    name: str
    max_batch_size: int
    inputs: Mapping[str, Input]
    outputs: Sequence[str]
    parameters: Mapping[str, str]
    decoupled: bool


def read_models(url: str, names: Sequence[str] = MODELS) -> dict[str, Model]:
    """Asks a server for the models that it has of ``names``."""
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        models = {}
        for name in names:
            try:
                answer = stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=10)
            except grpc.RpcError as error:
                # The twin is there only where the recipe asks for it.
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    continue
                raise
            models[name] = _model(answer.config)
    engine = models.get("tensorrt_llm")
    if engine and "ensemble" in models:
        # An ensemble has no policy of its own; it answers as often as its engine.
        models["ensemble"] = replace(models["ensemble"], decoupled=engine.decoupled)
    return models


def _model(config: model_config_pb2.ModelConfig) -> Model:
    return Model(
        name=config.name,
        max_batch_size=config.max_batch_size,
        inputs={
            entry.name: Input(
                entry.name,
                wire_type(model_config_pb2.DataType.Name(entry.data_type)),
                tuple(entry.dims),
                entry.optional,
            )
            for entry in config.input
        },
        outputs=tuple(dict.fromkeys(entry.name for entry in config.output)),
        parameters={key: value.string_value for key, value in config.parameters.items()},
        decoupled=config.model_transaction_policy.decoupled,
    )


def wire_type(name: str) -> str:
    """``INT32`` of ``TYPE_INT32``; a string is called ``BYTES`` on the wire."""
    short = name.removeprefix("TYPE_")
    return "BYTES" if short == "STRING" else short

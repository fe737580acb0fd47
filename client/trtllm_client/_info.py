"""What a server says about itself and its models."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_client._grpc import Message


@dataclass(frozen=True)
class ServerMetadata:
    """The server.

    Attributes:
        name: Its name; ``triton`` unless it was started with ``--id``.
        version: Triton's own version, such as ``2.51.0``.
        extensions: Names of the protocol extensions it has.
    """

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output.

    Attributes:
        name: Its name.
        datatype: KServe's name of the element type, such as ``INT32``.
        shape: With the batch dimension; -1 is any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model.

    Attributes:
        name: Its name.
        versions: The versions that are loaded.
        platform: ``ensemble``, or the backend's name.
        inputs: Its inputs.
        outputs: Its outputs.
        max_batch_size: Requests in one batch, at most; 0 is no batching.
        decoupled: Whether a request may have many responses.
        parameters: Its parameters from ``config.pbtxt``.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    max_batch_size: int
    decoupled: bool
    parameters: tuple[tuple[str, str], ...]


def server_metadata(message: Message) -> ServerMetadata:
    """Reads a ``ServerMetadataResponse``."""
    return ServerMetadata(message.name, message.version, tuple(message.extensions))


def model_metadata(metadata: Message, config: Message) -> ModelMetadata:
    """Joins a ``ModelMetadataResponse`` and a ``ModelConfigResponse``."""
    settings = config.config
    return ModelMetadata(
        name=metadata.name,
        versions=tuple(metadata.versions),
        platform=metadata.platform,
        inputs=tuple(_tensor(tensor) for tensor in metadata.inputs),
        outputs=tuple(_tensor(tensor) for tensor in metadata.outputs),
        max_batch_size=settings.max_batch_size,
        decoupled=settings.model_transaction_policy.decoupled,
        parameters=tuple(sorted((k, v.string_value) for k, v in settings.parameters.items())),
    )


def _tensor(tensor: Message) -> TensorMetadata:
    return TensorMetadata(tensor.name, tensor.datatype, tuple(tensor.shape))

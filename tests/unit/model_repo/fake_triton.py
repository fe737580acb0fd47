"""A stand-in for ``triton_python_backend_utils``, which exists only inside a Triton stub.

``install()`` must run before a module of ``model_repo`` that imports it.
"""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from tests.unit.model_repo.upstream import assert_shape

FINAL = 1
NAME = "triton_python_backend_utils"


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED = range(6)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    pass


class InferenceResponse:
    def __init__(
        self, output_tensors: Iterable[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._tensors, self._error = list(output_tensors), error
        for tensor in self._tensors:
            assert_shape(tensor.name(), tensor.as_numpy())

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Sender:
    """Records responses; fails, as Triton would crash, on anything after the final one."""

    def __init__(self) -> None:
        self.sent: list[tuple[InferenceResponse | None, bool]] = []
        self.done = threading.Event()
        self.cancelled = False
        self.gone_after: int | None = None
        """Responses that the client stays for."""

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.done.is_set(), "a response after the final one"
        self.sent.append((response, flags == FINAL))
        if len(self.sent) == self.gone_after:
            self.cancelled = True
        if flags == FINAL:
            self.done.set()

    def is_cancelled(self) -> bool:
        assert not self.done.is_set(), "asked after the final response"
        return self.cancelled

    def outputs(self, timeout: float = 20) -> list[dict[str, np.ndarray]]:
        """The outputs of every response, once the final one is there."""
        assert self.done.wait(timeout), "no final response"
        assert self.error is None, self.error
        return [
            {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            for response, _ in self.sent
            if response is not None
        ]

    @property
    def error(self) -> str | None:
        errors = [response.error() for response, _ in self.sent if response is not None]
        return next((error.message() for error in errors if error is not None), None)

    def failure(self, timeout: float = 20) -> str:
        assert self.done.wait(timeout), "no final response"
        assert self.error is not None, "an answer instead of an error"
        return self.error


class Request:
    """A client's request."""

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        wanted: Iterable[str],
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.sender = Sender()
        self._inputs, self._wanted, self._id = inputs, list(wanted), request_id
        self._parameters = json.dumps(parameters or {})

    def parameters(self) -> str:
        return self._parameters

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._inputs.items()]

    def requested_output_names(self) -> list[str]:
        return self._wanted

    def request_id(self) -> str:
        return self._id

    def get_response_sender(self) -> Sender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.sender.is_cancelled()


Handler = Callable[["InferenceRequest"], Iterable[InferenceResponse]]
HANDLERS: dict[str, Handler] = {}
"""What the models called from a model answer; a test fills it."""


class InferenceRequest:
    """A call from one model to another."""

    def __init__(
        self,
        model_name: str,
        requested_output_names: list[str],
        inputs: list[Tensor],
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_name, self.request_id = model_name, request_id
        self.parameters = dict(parameters or {})
        self.wanted = requested_output_names
        self.inputs = {tensor.name(): tensor.as_numpy() for tensor in inputs}

    def exec(self, decoupled: bool = False) -> Any:
        responses: Iterator[InferenceResponse] = iter(HANDLERS[self.model_name](self))
        return responses if decoupled else next(responses)


class Logger:
    messages: ClassVar[list[str]] = []

    @classmethod
    def log_info(cls, message: str) -> None:
        cls.messages.append(message)

    log_error = log_warn = log_info


class Metric:
    def __init__(self) -> None:
        self.value, self.observed = 0.0, []

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        self.value += value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class MetricFamily:
    GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
    metrics: ClassVar[dict[tuple[str, tuple[tuple[str, str], ...]], Metric]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        assert kind
        self._name = name

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        assert buckets is None or buckets == sorted(buckets)
        metric = Metric()
        self.metrics[self._name, tuple(sorted(labels.items()))] = metric
        return metric


def install() -> None:
    module = types.ModuleType(NAME)
    module.__dict__.update(
        Tensor=Tensor,
        TritonError=TritonError,
        TritonModelException=TritonModelException,
        InferenceResponse=InferenceResponse,
        InferenceRequest=InferenceRequest,
        Logger=Logger,
        MetricFamily=MetricFamily,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=lambda request, name: next(
            (tensor for tensor in request.inputs() if tensor.name() == name), None
        ),
        using_decoupled_model_transaction_policy=lambda config: config.get(
            "model_transaction_policy", {}
        ).get("decoupled", False),
    )
    sys.modules.setdefault(NAME, module)


def model_args(repository: Any, parameters: Mapping[str, str], **config: Any) -> dict[str, str]:
    """The arguments of ``initialize``, for a model below ``repository``."""
    return {
        "model_config": json.dumps(
            {
                "parameters": {k: {"string_value": v} for k, v in parameters.items()},
                "model_transaction_policy": {"decoupled": True},
                **config,
            }
        ),
        "model_repository": str(repository / "model"),
        "model_name": "model",
        "model_version": "1",
    }

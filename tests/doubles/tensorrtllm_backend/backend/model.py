"""The entry that Triton's Python backend calls: ``model_instance_state.cc``.

A folder of backends that holds ``tensorrtllm/model.py`` serves every model with
``backend: "tensorrtllm"``, so a repository for a GPU is served as it is. The environment variable
``TENSORRTLLM_DOUBLE_ENGINE`` names OpenVINO's engine directory of the same recipe, and
``TENSORRTLLM_DOUBLE_NOISE`` the standard deviation of what is added to every score.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from tests.doubles.tensorrtllm_backend.backend.adapters import Adapters
from tests.doubles.tensorrtllm_backend.backend.engine import Engine, Running
from tests.doubles.tensorrtllm_backend.backend.errors import TllmError, throw
from tests.doubles.tensorrtllm_backend.backend.executor import (
    Executor,
    IterationStats,
    PerfMetrics,
    Response,
    Result,
)
from tests.doubles.tensorrtllm_backend.backend.guides import Grammars
from tests.doubles.tensorrtllm_backend.backend.metrics import Metrics
from tests.doubles.tensorrtllm_backend.backend.request import (
    Request,
    Tensors,
    boolean,
    make_requests,
    split,
)
from tests.doubles.tensorrtllm_backend.backend.settings import read_settings

ENGINE_VARIABLE = "TENSORRTLLM_DOUBLE_ENGINE"
NOISE_VARIABLE = "TENSORRTLLM_DOUBLE_NOISE"
_INSTANCE = "triton_backend/inflight_batcher_llm/src/model_instance_state.cc"
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@dataclass
class _Pending:
    """What the prompts of one Triton request share."""

    sender: Any
    request: Any
    triton_id: str
    left: set[int]


@dataclass
class _RequestData:
    """``RequestData``: what is remembered of a prompt until its last response."""

    pending: _Pending
    request: Request
    wanted: frozenset[str]
    batch_index: int
    batch_size: int
    num_input_tokens: bool
    num_output_tokens: bool
    output_tokens: int = 0


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the parameters and opens the engine."""
        repository = Path(args["model_repository"]).parent
        with _as_triton_says("unexpected error when creating modelInstanceState: "):
            self._settings = read_settings(json.loads(args["model_config"]), repository)
        noise = float(os.environ.get(NOISE_VARIABLE, "0"))
        # A model with another engine than tensorrt_llm has a variable of its own.
        own = f"{ENGINE_VARIABLE}_{args['model_name'].upper()}"
        engine = Engine(Path(os.environ.get(own) or os.environ[ENGINE_VARIABLE]), noise)
        if engine.vocab_size != self._settings.vocab_size:
            raise ValueError(
                f"{ENGINE_VARIABLE} is the engine of a model with {engine.vocab_size} tokens, "
                f"the repository's has {self._settings.vocab_size}"
            )
        # One step compiles the kernels that the first request would wait for.
        first = engine.sequence()
        first.forward([0])
        first.release()
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._metrics = Metrics(self._settings, labels)
        self._lock = threading.Lock()
        self._data: dict[int, _RequestData] = {}
        self._by_triton_id: dict[str, set[int]] = {}
        self._stats: IterationStats | None = None
        self._closing = threading.Event()
        with _as_triton_says("unexpected error when creating modelInstanceState: "):
            self._executor = self._make_executor(engine)
        self._watchers = [
            threading.Thread(target=self._watch, args=(period, look), daemon=True)
            for period, look in (
                (self._settings.cancellation_check_period, self._look_for_cancelled),
                (self._settings.stats_check_period, self._publish),
            )
        ]
        for watcher in self._watchers:
            watcher.start()

    def _make_executor(self, engine: Engine) -> Executor:
        info, lora = self._settings.tokenizer_info, self._settings.lora
        adapters = None if lora is None else Adapters(lora, engine.adapted)

        def sequence(task_id: int | None) -> Running:
            if adapters is None or task_id is None:
                return engine.sequence()
            return adapters[task_id].sequence()

        return Executor(
            self._settings,
            sequence,
            self._respond,
            self._iterated,
            grammars=None if info is None else Grammars(info, self._settings.vocab_size),
            adapters=adapters,
        )

    def execute(self, requests: list[Any]) -> None:
        """``enqueue``."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                if not self._handle_stop(request, sender):
                    self._enqueue(request, sender)
            except TllmError as error:
                sender.send(_error(str(error)), flags=_FINAL)

    def finalize(self) -> None:
        """Waits for what is still running."""
        self._executor.shut_down()
        self._closing.set()
        for watcher in self._watchers:
            watcher.join()

    def _handle_stop(self, request: Any, sender: Any) -> bool:
        """``handleStopRequest``: an empty last response, whether there was something to stop."""
        if not boolean(_tensors(request), "stop"):
            return False
        if not request.request_id():
            raise TllmError("Trying to stop a request but request ID is not provided")
        with self._lock:
            for request_id in self._by_triton_id.get(request.request_id(), ()):
                self._executor.cancel(request_id)
        sender.send(pb_utils.InferenceResponse(output_tensors=[]), flags=_FINAL)
        return True

    def _enqueue(self, request: Any, sender: Any) -> None:
        tensors = _tensors(request)
        prompts = make_requests(
            split(tensors),
            streaming=boolean(tensors, "streaming"),
            decoupled=self._settings.decoupled,
            exclude_input=self._settings.exclude_input,
            lookahead=self._settings.lookahead is not None,
        )
        with self._lock:
            ids = self._executor.enqueue(prompts)
            pending = _Pending(sender, request, request.request_id(), set(ids))
            for index, (request_id, prompt) in enumerate(zip(ids, prompts, strict=True)):
                self._data[request_id] = _RequestData(
                    pending=pending,
                    request=prompt,
                    wanted=frozenset(request.requested_output_names()),
                    batch_index=index,
                    batch_size=len(ids),
                    num_input_tokens=boolean(tensors, "return_num_input_tokens"),
                    num_output_tokens=boolean(tensors, "return_num_output_tokens"),
                )
            if pending.triton_id:
                self._by_triton_id[pending.triton_id] = set(ids)

    def _respond(self, response: Response) -> None:
        """``WaitForResponse``: an error, also one of the backend's own, ends the prompt's answer.

        After one of its own the executor goes on with the request, whose responses are dropped.
        """
        with self._lock:
            data = self._data.get(response.request_id)
        if data is None:
            pb_utils.Logger.log_error("Unexpected response for a request ID that is not active")
            return
        final, count = True, 0
        if response.result is None:
            message = _error(
                f"Executor failed process requestId {response.request_id} due to the following "
                f"error: {response.error}"
            )
        else:
            try:
                outputs = fill(response.result, data)
                message = pb_utils.InferenceResponse(output_tensors=outputs)
                final, count = response.result.is_final, len(response.result.output_tokens)
            except TllmError as error:
                message = _error(f"Error encountered while populating response: {error}")
        with self._lock:
            data.output_tokens += count
            last = final and data.pending.left == {response.request_id}
            if final:
                self._forget(response.request_id, data)
        data.pending.sender.send(message, flags=_FINAL if last else 0)
        if last:
            self._count(data)

    def _forget(self, request_id: int, data: _RequestData) -> None:
        del self._data[request_id]
        data.pending.left.discard(request_id)
        same = self._by_triton_id.get(data.pending.triton_id)
        if same is not None:
            same.discard(request_id)
            if not same:
                del self._by_triton_id[data.pending.triton_id]

    def _count(self, data: _RequestData) -> None:
        """``reportCustomMetrics``: of a batch, the tokens of the last prompt to finish."""
        prompt, request = len(data.request.input_tokens), data.request
        output = data.output_tokens
        if not request.exclude_input and not request.streaming:
            output -= prompt
        self._metrics.finished(prompt, output)

    def _watch(self, period: float, look: Any) -> None:
        while not self._closing.wait(period):
            look()

    def _look_for_cancelled(self) -> None:
        """``WaitForCancel``."""
        with self._lock:
            for request_id, data in self._data.items():
                if data.pending.sender.is_cancelled():
                    self._executor.cancel(request_id)

    def _iterated(self, stats: IterationStats) -> None:
        self._stats = stats

    def _publish(self) -> None:
        """``WaitForStats``: nothing is published while nothing runs."""
        stats, self._stats = self._stats, None
        if stats is not None:
            self._metrics.iterated(stats)


def fill(result: Result, data: _RequestData) -> list[Any]:
    """``fillTritonResponse``: the tensors of a response.

    Raises:
        TllmError: ``output_ids`` or ``sequence_length`` was not asked for.
    """
    wanted, ids = data.wanted, result.output_tokens
    for name in ("output_ids", "sequence_length"):
        if name not in wanted:
            raise throw(f"{name} tensor must be present in list of output tensors", _INSTANCE)
    outputs: dict[str, Any] = {
        "output_ids": np.array([[ids]], np.int32).reshape(1, 1, len(ids)),
        "sequence_length": np.array([[len(ids)]], np.int32),
    }
    if "context_logits" in wanted and result.context_logits is not None:
        outputs["context_logits"] = result.context_logits[None]
    if "output_log_probs" in wanted and result.log_probs is not None:
        count = len(result.log_probs)
        outputs["output_log_probs"] = np.array(result.log_probs, np.float32).reshape(1, 1, count)
    if "cum_log_probs" in wanted and result.cum_log_prob is not None:
        outputs["cum_log_probs"] = np.array([[result.cum_log_prob]], np.float32)
    if "batch_index" in wanted and data.batch_size > 1:
        outputs["batch_index"] = np.array([[data.batch_index]], np.int32)
    if data.num_input_tokens and "num_input_tokens" in wanted:
        outputs["num_input_tokens"] = np.array([[len(data.request.input_tokens)]], np.int32)
    if data.num_output_tokens and "num_output_tokens" in wanted:
        outputs["num_output_tokens"] = np.array([[len(ids)]], np.int32)
    if result.metrics is not None:
        outputs |= _metrics(result.metrics)
    return [pb_utils.Tensor(name, value) for name, value in outputs.items()]


def _metrics(metrics: PerfMetrics) -> dict[str, Any]:
    blocks = {
        "kv_cache_alloc_new_blocks": metrics.alloc_new_blocks,
        "kv_cache_reused_blocks": metrics.reused_blocks,
        "kv_cache_alloc_total_blocks": metrics.alloc_total_blocks,
        "total_accepted_draft_tokens": metrics.accepted,
        "total_draft_tokens": metrics.guessed,
    }
    times = {
        "arrival_time_ns": metrics.arrival,
        "first_scheduled_time_ns": metrics.first_scheduled,
        "first_token_time_ns": metrics.first_token,
        "last_token_time_ns": metrics.last_token,
    }
    return {
        **{name: np.array([[value]], np.int32) for name, value in blocks.items()},
        **{name: np.array([[value]], np.int64) for name, value in times.items()},
        "acceptance_rate": np.array(
            [[metrics.accepted / metrics.guessed if metrics.guessed else 0]], np.float32
        ),
    }


def _tensors(request: Any) -> Tensors:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _error(text: str) -> Any:
    error = pb_utils.TritonError(text, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


@contextmanager
def _as_triton_says(prefix: str) -> Iterator[None]:
    try:
        yield
    except TllmError as error:
        raise pb_utils.TritonModelException(f"{prefix}{error}") from error

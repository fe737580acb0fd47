"""``tensorrt_llm_bls``: text to text, exactly, in streams too.

The ``preprocessing`` model is called once per request, so that there is one place where text
becomes tokens. Its counterpart is not called: every call between models costs about as much as an
engine step of a small model, and decoding needs the tokens before, so text is made in this process.
That is upstream's ``accumulate_tokens``, which is therefore always on here.

The stop words end the text at the first place where they appear in it, also when the engine's
tokens spell them differently; they are not part of the text unless the parameter
``include_stop_str_in_output`` says so. The last response with text carries Triton's FINAL flag.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from .calls import CallError, Models
from .completion import Completion
from .orphan import end_with_parent
from .parameters import flag, number, read_parameters
from .request_parameters import unknown_parameters
from .watcher import Watched, Watcher

# What leaves things as they are; whatever the engine can do, this model makes one text per request.
_ONLY = {
    "beam_width": (1, "beam search"),
    "num_return_sequences": (1, "several sequences per request"),
    "num_draft_tokens": (0, "draft tokens"),
    "use_draft_logits": (False, "draft tokens"),
}

_ANSWERS_ONCE = (
    "stream: this model answers once per request (its model_transaction_policy is not decoupled); "
    "send stream false, or call a model that streams: tensorrt_llm_bls of a repository with "
    "serve.decoupled: true or both"
)

# Each output that the engine need not send saves it and this process some time per token.
_MADE_HERE = frozenset({"text_output", "num_input_tokens", "num_output_tokens"})


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the tokenizer and starts the threads; a thread serves one request at a time."""
        end_with_parent()
        parameters = read_parameters(args)
        tokenizer_dir = parameters.get("tokenizer_dir", "preprocessing/1/tokenizer")
        path = Path(args["model_repository"]).parent / tokenizer_dir / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._exclude_input = flag(parameters, "exclude_input_in_output", default=True)
        self._include_stop_word = flag(parameters, "include_stop_str_in_output", default=False)
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(
            json.loads(args["model_config"])
        )
        self._models = Models(
            parameters.get("tensorrt_llm_model_name", "tensorrt_llm"),
            decoupled=flag(parameters, "tensorrt_llm_decoupled", default=self._decoupled),
        )
        self._capacity = number(parameters, "max_concurrent_requests", default=256)
        self._unfinished = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self._capacity, thread_name_prefix="request")
        period = number(parameters, "cancellation_check_period_ms", default=100)
        self._watcher = Watcher(self._models.stop, period / 1000)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        """Hands each request to a thread of its own."""
        for request in requests:
            sender = request.get_response_sender()
            with self._lock:
                full = self._unfinished >= self._capacity
                self._unfinished += not full
            if full:
                message = (
                    f"tensorrt_llm_bls serves {self._capacity} requests at a time "
                    "(max_concurrent_requests), please try again later"
                )
                _send_error(sender, message, pb_utils.TritonError.UNAVAILABLE)
            else:
                self._pool.submit(self._serve, request, sender)

    def finalize(self) -> None:
        """Waits for the requests still being served."""
        self._pool.shutdown()
        self._watcher.close()

    def _serve(self, request: Any, sender: Any) -> None:
        # Clients' ids need not be unique, and stopping one request must not stop its namesake.
        engine_id = f"{request.request_id() or 'bls'}-{uuid.uuid4().hex}"
        watched = self._watcher.watch(request, engine_id)
        try:
            self._answer(request, sender, engine_id, watched)
        except CallError as error:
            with watched.closing():
                _send_error(sender, str(error), error.code)
        except Exception as error:
            pb_utils.Logger.log_error(f"request {engine_id}: {error!r}")
            with watched.closing():
                message = f"the request failed: {error!r}"
                _send_error(sender, message, pb_utils.TritonError.INTERNAL)
        finally:
            self._watcher.forget(watched)
            with self._lock:
                self._unfinished -= 1

    def _answer(self, request: Any, sender: Any, engine_id: str, watched: Watched) -> None:
        if reason := unknown_parameters(request):
            raise CallError(reason)
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        _refuse_unsupported(inputs)
        if not self._decoupled and _scalar(inputs, "stream"):
            raise CallError(_ANSWERS_ONCE)
        tokens = self._models.preprocess(inputs)
        stop_words = [word.decode() for word in inputs.get("stop_words", np.array([])).flat]
        streaming = bool(_scalar(inputs, "stream"))
        completion = Completion(
            self._tokenizer,
            stop_words=stop_words,
            include_stop_word=self._include_stop_word,
            streaming=streaming,
            max_tokens=int(tokens["request_output_len"].item()),
            prompt=[] if streaming or self._excludes_input(inputs) else tokens["input_ids"].flat,
            num_input_tokens=(
                int(tokens["input_lengths"].item())
                if _scalar(inputs, "return_num_input_tokens")
                else None
            ),
            count_tokens=bool(_scalar(inputs, "return_num_output_tokens")),
        )
        wanted = request.requested_output_names()
        responses = self._models.generate(
            inputs,
            tokens,
            ["output_ids", *(name for name in wanted if name not in _MADE_HERE)],
            request_id=engine_id,
            # A stop word is only seen in time when the tokens come one by one.
            streaming=self._models.decoupled and (streaming or bool(stop_words)),
        )
        try:
            for outputs in responses:
                response = completion.take(outputs)
                if completion.complete:
                    break
                if response is not None:
                    sender.send(_response(response, wanted))
            with watched.closing():
                sender.send(
                    _response(completion.finish(), wanted),
                    flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
                )
        except CallError:
            raise  # the engine has ended the request itself
        except Exception:
            self._models.stop(engine_id)
            _read_rest(responses)
            raise
        if completion.stopped:
            self._models.stop(engine_id)
        _read_rest(responses)

    def _excludes_input(self, inputs: dict[str, Any]) -> bool:
        value = _scalar(inputs, "exclude_input_in_output")
        return self._exclude_input if value is None else bool(value)


def _refuse_unsupported(inputs: dict[str, Any]) -> None:
    if inputs["text_input"].size != 1:
        shape = list(inputs["text_input"].shape)
        raise CallError(
            f"text_input must be one text, got the shape {shape}: send a request per prompt, "
            "the engine batches them in flight"
        )
    for name, (only, what) in _ONLY.items():
        value = _scalar(inputs, name)
        if value not in (None, only):
            unsupported = pb_utils.TritonError.UNSUPPORTED
            raise CallError(f"{name} {value}: tensorrt_llm_bls has no {what}", unsupported)


def _read_rest(responses: Iterator[Any]) -> None:
    """Reads what nobody needs any more: Triton keeps every response until it is read."""
    with contextlib.suppress(CallError):
        for _ in responses:
            pass


def _scalar(inputs: dict[str, Any], name: str) -> Any:
    return inputs[name].item() if name in inputs else None


def _response(outputs: dict[str, Any], wanted: list[str]) -> Any:
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor(name, value) for name, value in outputs.items() if name in wanted
        ]
    )


def _send_error(sender: Any, message: str, code: Any) -> None:
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )

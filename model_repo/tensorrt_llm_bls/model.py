"""``tensorrt_llm_bls``: text to text, exactly, in streams too.

The ``preprocessing`` model is called once per request, so that there is one place where text
becomes tokens. Its counterpart is not called: every call between models costs about as much as an
engine step of a small model, and decoding needs the tokens before, so text is made in this process.

A response of a stream has the text that is new; with the parameter ``accumulate_tokens`` it has the
whole text so far, as upstream's model with that parameter. The text continues the prompt's, so that
both together are the text of all token ids.

An end id of the model that the engine knows as a stop word, and so leaves in its output, is neither
part of the text nor counted.

The stop words end the text at the first place where they appear in it, also when the engine's
tokens spell them differently; they are not part of the text unless the parameter
``include_stop_str_in_output`` says so.

Each prompt of a batch is an engine request of its own, answered by a thread of its own; responses
say which prompt they belong to with ``batch_index``. The response that ends the last prompt carries
Triton's FINAL flag. A prompt that fails ends the whole request.

Tokens of a stream come over a lane where the engine has one (lane_frames.py); with the parameter
``token_lane`` set to ``false`` they come through Triton, to measure what that costs.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from .batch import count_prompts, index_of, prompt_ids, row_of, scalar
from .calls import CallError, Models, greedy_when_cold
from .end_ids import read_end_ids
from .failures import NOT_TEXT, id_of, unexpected
from .orphan import end_with_parent
from .parameters import flag, number, read_parameters
from .refusals import Offers, refuse_many_answers, refuse_prompt
from .reply import Reply
from .request_parameters import unknown_parameters
from .speculation import Speculation
from .text_answer import TextAnswer
from .watcher import Watched, Watcher

# Each output that the engine need not send saves it and this process some time per token.
_MADE_HERE = frozenset({"text_output", "num_input_tokens", "num_output_tokens", "batch_index"})

# The C++ backend fails every request that does not ask for both
# (model_instance_state.cc, fillTritonResponse).
_ALWAYS = ("output_ids", "sequence_length")


@dataclass(frozen=True)
class _Request:
    """What the threads of one request share; ``engine_ids`` has one id for each prompt."""

    engine_ids: tuple[str, ...]
    wanted: list[str]
    watched: Watched
    reply: Reply


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the tokenizer and starts the threads; a thread serves one prompt at a time."""
        end_with_parent()
        parameters = read_parameters(args)
        tokenizer_dir = parameters.get("tokenizer_dir", "preprocessing/1/tokenizer")
        directory = Path(args["model_repository"]).parent / tokenizer_dir
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._end_ids = frozenset(read_end_ids(directory))
        self._exclude_input = flag(parameters, "exclude_input_in_output", default=True)
        self._accumulate = flag(parameters, "accumulate_tokens", default=False)
        self._include_stop_word = flag(parameters, "include_stop_str_in_output", default=False)
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(
            json.loads(args["model_config"])
        )
        self._capacity = number(parameters, "max_concurrent_requests", default=256)
        self._models = Models(
            parameters.get("tensorrt_llm_model_name", "tensorrt_llm"),
            decoupled=flag(parameters, "tensorrt_llm_decoupled", default=self._decoupled),
            lane=flag(parameters, "token_lane", default=True),
            calls=self._capacity,
        )
        self._offers = Offers(
            guided_decoding=bool(parameters.get("guided_decoding_backend")),
            lora_task_ids=tuple(filter(None, parameters.get("lora_task_ids", "").split(","))),
            greedy=flag(parameters, "decodes_greedily", default=False),
        )
        draft = parameters.get("tensorrt_llm_draft_model_name")
        self._speculation = Speculation(
            self._models,
            Models(draft, decoupled=self._models.decoupled) if draft else None,
            number(parameters, "max_draft_len", default=0),
        )
        self._unfinished = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self._capacity, thread_name_prefix="request")
        period = number(parameters, "cancellation_check_period_ms", default=100)
        self._watcher = Watcher(self._speculation.stop, period / 1000)
        self._watcher.start()

    def execute(self, requests: list[Any]) -> None:
        """Hands each request to a thread of its own."""
        for request in requests:
            sender = request.get_response_sender()
            if self._reserve(1):
                self._pool.submit(self._serve, request, sender)
            else:
                _refuse(sender, self._no_room(), pb_utils.TritonError.UNAVAILABLE)

    def finalize(self) -> None:
        """Waits for the requests still being served."""
        self._pool.shutdown()
        self._watcher.close()
        self._models.close()

    def _serve(self, request: Any, sender: Any) -> None:
        """Prepares a request and answers its first prompt; other threads answer the others."""
        try:
            inputs = greedy_when_cold(
                {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            )
            if "text_input" not in inputs:
                # Triton counts the inputs of a request and does not look which they are.
                raise CallError("the input text_input is missing")
            prompts = count_prompts(inputs)
            client_id = id_of(request)
            if client_id is None:
                raise CallError(NOT_TEXT)
        except CallError as error:
            self._release()
            _refuse(sender, str(error), error.code)
            return
        except Exception as error:
            self._release()
            _refuse(sender, unexpected(error), pb_utils.TritonError.INTERNAL)
            return
        # Clients' ids need not be unique, and stopping one request must not stop its namesake.
        engine_ids = tuple(f"{client_id or 'bls'}-{uuid.uuid4().hex}" for _ in range(prompts))
        wanted = request.requested_output_names()
        watched = self._watcher.watch(request, engine_ids)
        shared = _Request(engine_ids, wanted, watched, Reply(sender, wanted, prompts, watched))
        try:
            if reason := unknown_parameters(request):
                raise CallError(reason)
            if prompts > self._capacity:
                raise CallError(
                    f"the request has {prompts} prompts; tensorrt_llm_bls serves at most "
                    f"{self._capacity} at a time (max_concurrent_requests)"
                )
            rows = [row_of(inputs, index) for index in range(prompts)]
            for row in rows:
                refuse_prompt(row, self._offers)
                self._speculation.wanted(row)
            if not self._decoupled:
                refuse_many_answers(rows)
            tokens = self._models.preprocess(inputs)
            if not self._reserve(prompts - 1):
                raise CallError(self._no_room(), pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:
            self._fail(shared, 0, error)
            self._end(shared)
            return
        for index in range(1, prompts):
            self._hand_over(shared, index, rows[index], row_of(tokens, index))
        self._serve_prompt(shared, 0, rows[0], row_of(tokens, 0))

    def _hand_over(
        self, shared: _Request, index: int, inputs: dict[str, Any], tokens: dict[str, Any]
    ) -> None:
        try:
            self._pool.submit(self._serve_prompt, shared, index, inputs, tokens)
        except RuntimeError:  # its pool takes no more
            told = CallError("the model is being unloaded", pb_utils.TritonError.UNAVAILABLE)
            self._fail(shared, index, told)
            self._end(shared)

    def _serve_prompt(
        self, shared: _Request, index: int, inputs: dict[str, Any], tokens: dict[str, Any]
    ) -> None:
        try:
            self._answer(shared, index, inputs, tokens)
        except Exception as error:
            self._fail(shared, index, error)
        finally:
            self._end(shared)

    def _fail(self, shared: _Request, index: int, error: Exception) -> None:
        engine_id = shared.engine_ids[index]
        if isinstance(error, CallError):
            failed = shared.reply.fail(str(error), error.code)
        else:
            message = unexpected(error, f"request {engine_id}")
            failed = shared.reply.fail(message, pb_utils.TritonError.INTERNAL)
        if failed:
            for other in shared.engine_ids:
                if other != engine_id:
                    self._watcher.stop(other)

    def _end(self, shared: _Request) -> None:
        if shared.reply.over:
            self._watcher.forget(shared.watched)
        self._release()

    def _release(self) -> None:
        with self._lock:
            self._unfinished -= 1

    def _reserve(self, threads: int) -> bool:
        with self._lock:
            free = self._unfinished + threads <= self._capacity
            self._unfinished += threads * free
        return free

    def _no_room(self) -> str:
        return (
            f"tensorrt_llm_bls serves {self._capacity} requests at a time "
            "(max_concurrent_requests), please try again later"
        )

    def _answer(
        self, shared: _Request, index: int, inputs: dict[str, Any], tokens: dict[str, Any]
    ) -> None:
        reply, engine_id = shared.reply, shared.engine_ids[index]
        if reply.over:
            return  # another prompt has failed
        tokens = {**tokens, "input_ids": prompt_ids(tokens)}
        stop_words = [word.decode() for word in inputs.get("stop_words", np.array([])).flat]
        streaming = bool(scalar(inputs, "stream"))
        facts = index_of(index, len(shared.engine_ids))
        if scalar(inputs, "return_num_input_tokens"):
            facts["num_input_tokens"] = tokens["input_lengths"]
        answer = TextAnswer(
            self._tokenizer,
            stop_words=stop_words,
            include_stop_word=self._include_stop_word,
            streaming=streaming,
            accumulate=self._accumulate,
            max_tokens=int(tokens["request_output_len"].item()),
            prompt=tokens["input_ids"].reshape(-1).tolist(),
            echo=not streaming and not self._excludes_input(inputs),
            facts=facts,
            count_tokens=bool(scalar(inputs, "return_num_output_tokens")),
            # A request that names an end id of its own ends at no other.
            end_ids=() if "end_id" in inputs else self._end_ids,
        )
        asked = _asked(shared.wanted)
        if guesses := self._speculation.wanted(inputs):
            responses = self._speculation.generate(
                guesses, inputs, tokens, asked, request_id=engine_id
            )
        else:
            responses = self._models.generate(
                inputs,
                tokens,
                asked,
                request_id=engine_id,
                # A stop word is only seen in time when the tokens come one by one.
                streaming=self._models.decoupled and (streaming or bool(stop_words)),
            )
        abandoned = False
        try:
            for outputs in responses:
                response = answer.take(outputs)
                if answer.complete:
                    break
                if response is not None and not reply.send(response):
                    abandoned = True
                    break
            if not abandoned:
                reply.send(answer.finish(), last=True)
        except CallError:
            raise  # the engine has ended the request itself
        except Exception:
            self._speculation.stop(engine_id)
            _read_rest(responses)
            raise
        if answer.stopped or abandoned:
            self._speculation.stop(engine_id)
        _read_rest(responses)

    def _excludes_input(self, inputs: dict[str, Any]) -> bool:
        value = scalar(inputs, "exclude_input_in_output")
        return self._exclude_input if value is None else bool(value)


def _asked(wanted: Iterable[str]) -> list[str]:
    """The engine's outputs that an answer with the outputs ``wanted`` is made of."""
    asked = [*_ALWAYS, *(name for name in wanted if name not in _MADE_HERE)]
    if "cum_log_probs" in asked and "output_log_probs" not in asked:
        # An end id that the engine leaves in its output is taken out of the sum (text_answer.py).
        asked.append("output_log_probs")
    return asked


def _read_rest(responses: Iterator[Any]) -> None:
    """Reads what nobody needs any more: Triton keeps every response until it is read."""
    with contextlib.suppress(CallError):
        for _ in responses:
            pass


def _refuse(sender: Any, message: str, code: Any) -> None:
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )

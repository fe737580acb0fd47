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

from .batch import count_prompts, index_of, prompt_ids, row_of
from .calls import CallError, Models, greedy_when_cold
from .end_ids import read_end_ids
from .guides import KIND, GuideError, read_guide
from .orphan import end_with_parent
from .parameters import flag, number, read_parameters
from .reply import Reply
from .request_parameters import unknown_parameters
from .speculation import Speculation
from .text_answer import TextAnswer
from .watcher import Watched, Watcher

# What leaves things as they are; whatever the engine can do, this model makes one text per request.
_ONLY = {
    "beam_width": (1, "beam search"),
    "num_return_sequences": (1, "several sequences per request"),
}

# Of a request to an engine that speculates: what asks for nothing.
_GREEDY = {
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "return_log_probs": (False,),
}
_NO_WORDS = ("bad_words", "embedding_bias_words")

_ANSWERS_ONCE = (
    "this model answers once per request (its model_transaction_policy is not decoupled); call one "
    "that may answer often, tensorrt_llm_bls of a repository with serve.decoupled: true or both"
)

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
        self._models = Models(
            parameters.get("tensorrt_llm_model_name", "tensorrt_llm"),
            decoupled=flag(parameters, "tensorrt_llm_decoupled", default=self._decoupled),
        )
        draft = parameters.get("tensorrt_llm_draft_model_name")
        self._speculation = Speculation(
            self._models,
            Models(draft, decoupled=self._models.decoupled) if draft else None,
            number(parameters, "max_draft_len", default=0),
        )
        self._guided_decoding = bool(parameters.get("guided_decoding_backend"))
        self._lora_task_ids = parameters.get("lora_task_ids", "").split(",")
        self._greedy = flag(parameters, "decodes_greedily", default=False)
        self._capacity = number(parameters, "max_concurrent_requests", default=256)
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
        except CallError as error:
            self._release()
            _refuse(sender, str(error), error.code)
            return
        except Exception as error:
            pb_utils.Logger.log_error(f"request {request.request_id()!r}: {error!r}")
            self._release()
            _refuse(sender, f"the request failed: {error!r}", pb_utils.TritonError.INTERNAL)
            return
        # Clients' ids need not be unique, and stopping one request must not stop its namesake.
        engine_ids = tuple(
            f"{request.request_id() or 'bls'}-{uuid.uuid4().hex}" for _ in range(prompts)
        )
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
                _refuse_unsupported(row)
                self._speculation.wanted(row)
                _check_adapter(row, self._lora_task_ids)
                if self._greedy:
                    _refuse_sampling(row)
                _check_guide(row, served=self._guided_decoding)
            if not self._decoupled:
                _refuse_many_answers(rows)
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
        except RuntimeError as error:  # the model is being unloaded
            self._fail(shared, index, error)
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
            pb_utils.Logger.log_error(f"request {engine_id}: {error!r}")
            message = f"the request failed: {error!r}"
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
        streaming = bool(_scalar(inputs, "stream"))
        facts = index_of(index, len(shared.engine_ids))
        if _scalar(inputs, "return_num_input_tokens"):
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
            count_tokens=bool(_scalar(inputs, "return_num_output_tokens")),
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
        value = _scalar(inputs, "exclude_input_in_output")
        return self._exclude_input if value is None else bool(value)


def _refuse_unsupported(inputs: dict[str, Any]) -> None:
    for name, (only, what) in _ONLY.items():
        value = _scalar(inputs, name)
        if value not in (None, only):
            unsupported = pb_utils.TritonError.UNSUPPORTED
            raise CallError(f"{name} {value}: tensorrt_llm_bls has no {what}", unsupported)


def _check_adapter(inputs: dict[str, Any], served: list[str]) -> None:
    """Refuses an adapter that is not there; an engine without LoRA would answer without it.

    The first request with an id that the repository does not have may bring its weights.
    """
    chosen = _scalar(inputs, "lora_task_id")
    brings = [name for name in ("lora_weights", "lora_config") if name in inputs]
    if chosen is None:
        if brings:
            raise CallError(f"{brings[0]} needs lora_task_id, the adapter's id")
        return
    if not any(served):
        raise CallError(
            f"lora_task_id {chosen} is not supported: this repository serves no LoRA adapters; "
            "leave it out, or make the repository again with serve.lora_adapters in the recipe",
            pb_utils.TritonError.UNSUPPORTED,
        )
    if not brings and str(chosen) not in served:
        raise CallError(
            f"lora_task_id {chosen} is unknown and needs lora_weights and lora_config in its first "
            f"request; the adapters of this repository are {', '.join(served)}"
        )


def _asked(wanted: Iterable[str]) -> list[str]:
    """The engine's outputs that an answer with the outputs ``wanted`` is made of."""
    asked = [*_ALWAYS, *(name for name in wanted if name not in _MADE_HERE)]
    if "cum_log_probs" in asked and "output_log_probs" not in asked:
        # An end id that the engine leaves in its output is taken out of the sum (text_answer.py).
        asked.append("output_log_probs")
    return asked


def _refuse_sampling(inputs: dict[str, Any]) -> None:
    """What an engine that speculates would leave out without a word.

    Its decoder takes the most likely token at each place, and has neither penalties nor banned
    words nor log probabilities (``DecodingMode::Lookahead`` in executor/types.h,
    layers/lookaheadDecodingLayer.cpp).
    """
    asked = [
        name for name, neutral in _GREEDY.items() if _scalar(inputs, name) not in (None, *neutral)
    ]
    # Of either, 0 is not given; neither of them is greedy decoding.
    top_k, top_p = _scalar(inputs, "top_k") or 0, _scalar(inputs, "top_p") or 0.0
    if top_k > 1 or (top_k < 1 and top_p > 0.0):
        asked.append("top_k" if top_k else "top_p")
    asked += [name for name in _NO_WORDS if name in inputs and inputs[name].size]
    if asked:
        raise CallError(
            f"{', '.join(asked)} is not supported: this engine was built for lookahead decoding, "
            "which takes the most likely token at each place; leave it out",
            pb_utils.TritonError.UNSUPPORTED,
        )


def _check_guide(inputs: dict[str, Any], *, served: bool) -> None:
    """Refuses a guide that the C++ backend would ignore, or fail all its requests with.

    A text that follows a guide ends with one of the model's own end ids. Where the request has
    another, the engine goes on, and xgrammar fails on a text that it has ended
    (GuidedDecodingConfig::validate in executor/guidedDecodingConfig.cpp warns of the mismatch).
    """
    try:
        guide = read_guide(inputs)
    except GuideError as error:
        raise CallError(str(error)) from error
    if guide is None:
        return
    if not served:
        raise CallError(
            f"{KIND} {guide[0]} is not supported: GuidedDecoder is not set up in this repository; "
            "make it again with serve.guided_decoding: xgrammar in the recipe, or leave the guide "
            "out",
            pb_utils.TritonError.UNSUPPORTED,
        )
    for name in ("end_id", "min_tokens"):
        value = _scalar(inputs, name)
        if value is not None and (name, value) != ("min_tokens", 0):
            raise CallError(
                f"{name} cannot be combined with a guide, which decides where the text may end; "
                "leave one of them out"
            )


def _refuse_many_answers(rows: list[dict[str, Any]]) -> None:
    """What takes more than one response, on a model that gives one."""
    if any(_scalar(row, "stream") for row in rows):
        raise CallError(f"stream: {_ANSWERS_ONCE}, or send stream false")
    if len(rows) > 1:
        raise CallError(f"text_input has {len(rows)} prompts: {_ANSWERS_ONCE}, or send one")


def _read_rest(responses: Iterator[Any]) -> None:
    """Reads what nobody needs any more: Triton keeps every response until it is read."""
    with contextlib.suppress(CallError):
        for _ in responses:
            pass


def _scalar(inputs: dict[str, Any], name: str) -> Any:
    return inputs[name].item() if name in inputs else None


def _refuse(sender: Any, message: str, code: Any) -> None:
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code)),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )

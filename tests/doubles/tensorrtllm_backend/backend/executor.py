"""The executor's loop: ``executorImpl.cpp``, and each request's part of it, ``llmRequest.cpp``.

One thread takes cancellations, sends what is new, takes requests from the queue and steps all that
are scheduled. What is wrong with a new request fails it alone; what is thrown while stepping ends
every active one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from . import decoder
from .adapters import Adapters, LoraExpectedError
from .errors import TllmError, check, throw
from .guides import Grammars
from .request import Request
from .settings import Settings

_EXECUTOR = "cpp/tensorrt_llm/executor/executorImpl.cpp"
_LLM_REQUEST = "cpp/tensorrt_llm/batch_manager/llmRequest.cpp"
_MODEL = "cpp/tensorrt_llm/batch_manager/trtGptModelInflightBatching.cpp"
ITERATION_S = 0.002
"""Seconds that an iteration takes at least, as on a GPU; a stop or a cancellation comes in time."""

_SETUP = "cpp/tensorrt_llm/batch_manager/createNewDecoderRequests.cpp"


class Running(Protocol):
    """A sequence in the engine."""

    def forward(self, tokens: Sequence[int]) -> npt.NDArray[Any]:
        """The scores after each of these tokens."""

    def release(self) -> None:
        """Gives its memory back."""


@dataclass(frozen=True)
class PerfMetrics:
    """``executor::RequestPerfMetrics``; times in nanoseconds of the steady clock, 0 for not yet."""

    alloc_new_blocks: int
    reused_blocks: int
    alloc_total_blocks: int
    arrival: int
    first_scheduled: int
    first_token: int
    last_token: int
    guessed: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Result:
    """``executor::Result`` of one beam."""

    is_final: bool
    output_tokens: tuple[int, ...]
    log_probs: tuple[float, ...] | None
    cum_log_prob: float | None
    context_logits: npt.NDArray[Any] | None
    metrics: PerfMetrics | None


@dataclass(frozen=True)
class Response:
    """``executor::Response``: a result or an error."""

    request_id: int
    result: Result | None = None
    error: str | None = None


@dataclass
class IterationStats:
    """``executor::IterationStats``, as far as the backend publishes it."""

    iteration: int = 0
    active: int = 0
    scheduled: int = 0
    context: int = 0
    context_tokens: int = 0
    generating: int = 0
    used_blocks: int = 0
    reused_blocks: int = 0


@dataclass
class LlmRequest:
    """A request that the executor has taken up.

    Attributes:
        tokens: Prompt and generated ones.
        sent: How many of them were in a response.
    """

    request_id: int
    request: Request
    max_new_tokens: int
    arrival: int
    tokens: list[int]
    random: np.random.Generator
    sent: int = 0
    log_probs: list[float] = field(default_factory=list)
    cum_log_prob: float = 0.0
    context_logits: npt.NDArray[Any] | None = None
    sequence: Any = None
    matcher: Any = None
    blocks: int = 0
    new_blocks: int = 0
    reused_blocks: int = 0
    first_scheduled: int = 0
    first_token: int = 0
    last_token: int = 0
    guessed: int = 0
    accepted: int = 0
    finished: bool = False

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.input_tokens)

    def result(self) -> Result | None:
        """``createResult``: what is to be sent now, or None.

        A stream has the tokens that are new, and every log probability so far.
        """
        request = self.request
        if not self.finished and not (request.streaming and len(self.tokens) > self.sent):
            return None
        if request.streaming:
            start = self.sent
        else:
            start = self.prompt_length if request.exclude_input else 0
        self.sent = len(self.tokens)
        asked = request.return_log_probs
        return Result(
            is_final=self.finished,
            output_tokens=tuple(self.tokens[start:]),
            log_probs=tuple(self.log_probs) if asked else None,
            cum_log_prob=self.cum_log_prob if asked else None,
            context_logits=self.context_logits,
            metrics=self._metrics() if request.return_perf_metrics else None,
        )

    def _metrics(self) -> PerfMetrics:
        return PerfMetrics(
            alloc_new_blocks=self.new_blocks,
            reused_blocks=self.reused_blocks,
            alloc_total_blocks=self.blocks,
            arrival=self.arrival,
            first_scheduled=self.first_scheduled,
            first_token=self.first_token,
            last_token=self.last_token,
            guessed=self.guessed,
            accepted=self.accepted,
        )


class Executor:
    """Runs requests until it is shut down.

    Args:
        settings: The model's limits.
        sequence: Makes a sequence in the engine, with the adapter of a task id or none.
        respond: Called by the loop's thread with each response.
        iterated: Called by it after each iteration.
        grammars: Of guided decoding, where it is set up.
        adapters: Of an engine with the LoRA plugin. Without it a task id does nothing.
    """

    def __init__(
        self,
        settings: Settings,
        sequence: Callable[[int | None], Running],
        respond: Callable[[Response], None],
        iterated: Callable[[IterationStats], None] = lambda _: None,
        *,
        grammars: Grammars | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._grammars, self._adapters = grammars, adapters
        self._settings, self._sequence = settings, sequence
        self._respond, self._iterated = respond, iterated
        self._ids = itertools.count(1)
        self._wake = threading.Condition()
        self._queued: deque[tuple[int, Request, int]] = deque()
        self._cancelled: set[int] = set()
        self._active: list[LlmRequest] = []
        self._free_blocks = settings.max_blocks
        self._known_blocks: set[tuple[int, ...]] = set()
        self._iterations = 0
        self._shut_down = False
        self._thread = threading.Thread(target=self._loop, name="executor", daemon=True)
        self._thread.start()

    def enqueue(self, requests: Sequence[Request]) -> list[int]:
        """``enqueueRequests``: the executor's ids, one for each.

        Raises:
            TllmError: The queue is full. Requests that are active do not count.
        """
        limit = self._settings.max_queue_size
        with self._wake:
            if limit > 0 and len(self._queued) + len(requests) > limit:
                raise throw(
                    f"Maximum queue size of {limit} has been reached, please try again later",
                    _EXECUTOR,
                )
            ids = [next(self._ids) for _ in requests]
            now = time.monotonic_ns()
            self._queued.extend(
                (number, request, now) for number, request in zip(ids, requests, strict=True)
            )
            self._wake.notify()
        return ids

    def cancel(self, request_id: int) -> None:
        """``cancelRequest``: looked at when the request is active, at the next iteration."""
        with self._wake:
            self._cancelled.add(request_id)

    def shut_down(self) -> None:
        """Ends the thread when nothing is active any more."""
        with self._wake:
            self._shut_down = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queued or self._active or self._shut_down)
                if self._shut_down and not self._active:
                    return
            started = time.monotonic()
            self._terminate_cancelled()
            self._populate_responses()
            self._fetch()
            if self._active:
                self._forward()
                time.sleep(max(0.0, started + ITERATION_S - time.monotonic()))

    def _terminate_cancelled(self) -> None:
        with self._wake:
            cancelled = {r.request_id for r in self._active} & self._cancelled
            self._cancelled -= cancelled
        for request in self._active:
            if request.request_id in cancelled and not request.finished:
                self._finish(request)

    def _populate_responses(self) -> None:
        for request in list(self._active):
            result = request.result()
            if request.finished:
                self._active.remove(request)
                self._terminate(request)
            if result is not None:
                self._respond(Response(request.request_id, result))

    def _fetch(self) -> None:
        """``fetchNewRequests``: as many as there is room for, all of one beam width."""
        with self._wake:
            if self._shut_down:
                return
            room = self._settings.max_batch_size - len(self._active)
            widths = [r.request.sampling.beam_width for r in self._active[:1]]
            taken = []
            while self._queued and len(taken) < room:
                width = self._queued[0][1].sampling.beam_width
                if widths and width != widths[0]:
                    break
                widths = [width]
                taken.append(self._queued.popleft())
        for request_id, request, arrival in taken:
            try:
                self._active.append(self._taken_up(request_id, request, arrival))
            except LoraExpectedError as error:
                self._respond(Response(request_id, error=str(error)))
            except TllmError as error:
                text = f"Encountered an error when fetching new request: {error}"
                self._respond(Response(request_id, error=text))

    def _taken_up(self, request_id: int, request: Request, arrival: int) -> LlmRequest:
        settings = self._settings
        max_new_tokens = validate(request, settings)
        if request.streaming and not settings.guaranteed_no_evict and not settings.chunked_context:
            check(
                len(request.input_tokens) + max_new_tokens - 1 <= settings.max_input_len,
                "Request sequence length is potentially greater than max input length. This "
                "cannot be run unless streaming is disabled, context chunking is enabled or the "
                "GUARANTEED_NO_EVICT scheduling policy is used",
                _EXECUTOR,
            )
        if request.return_context_logits:
            check(
                settings.gather_context_logits,
                "Return context logit need to build engine with gather_context_logits",
                _EXECUTOR,
            )
        # The backend never enables them, whatever the engine was built with.
        check(
            not request.return_generation_logits,
            "To return generation logits, gather_generation_logits must be enabled in "
            "ExecutorConfig",
            _EXECUTOR,
        )
        if request.guide:
            check(
                self._grammars is not None,
                "Request is specified with GuidedDecodingParams, but GuidedDecoder is not setup. "
                "Please provide a valid GuidedDecodingConfig to setup GuidedDecoder.",
                _EXECUTOR,
            )
        if self._adapters is not None:
            self._adapters.add(request)
        return LlmRequest(
            request_id=request_id,
            request=request,
            max_new_tokens=max_new_tokens,
            arrival=arrival,
            tokens=list(request.input_tokens),
            random=np.random.default_rng(request.sampling.seed or 0),
            sent=len(request.input_tokens) if request.streaming else 0,
        )

    def _forward(self) -> None:
        try:
            self._verify_beams()
            self._schedule()
            stats = IterationStats(active=len(self._active))
            for request in self._active:
                if request.blocks:
                    self._step(request, stats)
        except Exception as error:  # noqa: BLE001 -- as upstream, whatever it is
            text = f"Encountered an error in forwardAsync function: {error}"
            for request in self._active:
                self._terminate(request)
                self._respond(Response(request.request_id, error=text))
            self._active.clear()
            return
        self._iterations += 1
        stats.iteration = self._iterations
        stats.used_blocks = self._settings.max_blocks - self._free_blocks
        self._iterated(stats)

    def _verify_beams(self) -> None:
        width, limit = self._active[0].request.sampling.beam_width, self._settings.max_beam_width
        check(
            width <= limit,
            f"Requested beam width {width} is larger than configured max beam width {limit}",
            _MODEL,
        )
        if width > 1:
            raise throw("this stand-in has no beam search", "tests/doubles")

    def _schedule(self) -> None:
        """Guarantees a request that starts all the blocks it may come to need."""
        size = self._settings.tokens_per_block
        for request in self._active:
            if request.blocks:
                continue
            needed = -(-(request.prompt_length + request.max_new_tokens) // size)
            if needed > self._free_blocks:
                return
            self._free_blocks -= needed
            request.blocks = needed
            request.first_scheduled = time.monotonic_ns()
            request.reused_blocks = self._count_reused(request)
            request.new_blocks = needed - request.reused_blocks

    def _count_reused(self, request: LlmRequest) -> int:
        """Blocks of the prompt that were in the cache; they are counted, not reused."""
        if not self._settings.block_reuse:
            return 0
        size, prompt = self._settings.tokens_per_block, request.request.input_tokens
        # The last token of a prompt is always computed.
        whole = [prompt[:end] for end in range(size, len(prompt), size)]
        reused = sum(1 for _ in itertools.takewhile(self._known_blocks.__contains__, whole))
        self._known_blocks.update(whole)
        return reused

    def _step(self, request: LlmRequest, stats: IterationStats) -> None:
        stats.scheduled += 1
        if request.sequence is None:
            _set_up_decoder(request.request, self._settings)
            adapter = None if self._adapters is None else request.request.lora_task_id
            request.sequence = self._sequence(adapter)
            if request.request.guide and self._grammars is not None:
                request.matcher = self._grammars.matcher(request.request.guide)
            room = self._settings.max_input_len - request.prompt_length
            guesses = request.request.draft_tokens[:room]
            scores = request.sequence.forward([*request.tokens, *guesses])
            stats.context += 1
            stats.context_tokens += request.prompt_length
            stats.reused_blocks += request.reused_blocks
            if request.request.return_context_logits:
                request.context_logits = scores
            if guesses:
                self._accept(request, guesses, scores[-1 - len(guesses) :])
            else:
                self._decode(request, scores[-1])
            return
        stats.generating += 1
        if request.matcher is not None:
            request.matcher.accept(request.tokens[-1])
        tokens = request.tokens
        self._decode(request, request.sequence.forward(tokens[-1:])[-1])
        if self._settings.lookahead is None:
            return
        # What is guessed is accepted as long as it is the most likely token.
        for guess in decoder.guesses(tokens, self._settings.lookahead[1] - 1):
            if request.finished:
                return
            self._decode(request, request.sequence.forward(tokens[-1:])[-1])
            if tokens[-1] != guess:
                return

    def _decode(self, request: LlmRequest, scores: npt.NDArray[Any]) -> None:
        asked = request.request
        if request.matcher is not None:
            scores = request.matcher.masked(scores)
        place = {
            "tokens": request.tokens,
            "prompt_length": request.prompt_length,
            "end_id": asked.end_id,
        }
        if self._settings.lookahead is not None:
            choice = decoder.most_likely(scores, **place, min_tokens=asked.sampling.min_tokens or 0)
        else:
            choice = decoder.choose(
                scores,
                asked.sampling,
                request.random,
                **place,
                bad_words=asked.bad_words,
                bias=asked.embedding_bias,
            )
        request.first_token = request.first_token or time.monotonic_ns()
        if choice.token == asked.end_id:
            # The length does not grow for it, so neither do the lists.
            self._finish(request)
            return
        request.tokens.append(choice.token)
        normalize = self._settings.normalize_log_probs
        request.log_probs.append(choice.normalized if normalize else choice.log_prob)
        request.cum_log_prob += choice.log_prob
        generated = len(request.tokens) - request.prompt_length
        if (
            decoder.ends_with_word(request.tokens, asked.stop_words)
            or generated >= request.max_new_tokens
        ):
            self._finish(request)

    def _accept(
        self, request: LlmRequest, guesses: Sequence[int], scores: npt.NDArray[Any]
    ) -> None:
        """Decodes one token for each place of the guesses, up to the first that is another.

        Such a request ends after one step, whatever it asked for (updateRequests in
        trtGptModelInflightBatching.cpp: isDraftTokensExternal and hasDraftTokens).
        """
        for guess, row in zip((*guesses, None), scores, strict=True):
            self._decode(request, row)
            if request.finished:
                break
            if request.tokens[-1] != guess:
                break
            request.accepted += 1
        request.guessed = len(guesses)
        if not request.finished:
            self._finish(request)

    def _finish(self, request: LlmRequest) -> None:
        request.finished = True
        request.last_token = time.monotonic_ns()

    def _terminate(self, request: LlmRequest) -> None:
        if request.sequence is not None:
            request.sequence.release()
            request.sequence = None
        self._free_blocks += request.blocks


def validate(request: Request, settings: Settings) -> int:
    """``LlmRequest::validate``.

    Returns:
        The most new tokens: those asked for, or as many as the engine has room for.

    Raises:
        TllmError: The request cannot be run.
    """
    end_id, prompt_length = request.end_id, len(request.input_tokens)
    if end_id is not None:
        check(
            -1 <= end_id < settings.vocab_size,
            f"EndId ({end_id}) is not within acceptable range [-1, {settings.vocab_size}).",
            _LLM_REQUEST,
        )
    if prompt_length > settings.max_input_len:
        raise throw(
            f"Prompt length ({prompt_length}) exceeds maximum input length "
            f"({settings.max_input_len}). Set log level to info and check TRTGptModel logs for how "
            "maximum input length is set",
            _LLM_REQUEST,
        )
    # Without guesses of its own a request must leave room for the most there can be.
    draft = len(request.draft_tokens) or settings.max_draft_len
    if draft > settings.max_draft_len:
        raise throw(
            f"Draft tokens length ({draft}) exceeds maximum draft tokens length "
            f"({settings.max_draft_len}).",
            _LLM_REQUEST,
        )
    ngram = request.sampling.no_repeat_ngram_size
    check(ngram is None or ngram > 0, "Incorrect sampling config", _LLM_REQUEST)
    # A step needs room for all that it guesses.
    return min(request.max_new_tokens, settings.max_seq_len - prompt_length - draft)


def _set_up_decoder(request: Request, settings: Settings) -> None:
    if request.embedding_bias is not None:
        check(
            request.embedding_bias.shape[0] == settings.vocab_size,
            "The embedding bias shape is not as expected. Expected last dimension to be same as "
            f"vocab size: {settings.vocab_size}.",
            _SETUP,
        )

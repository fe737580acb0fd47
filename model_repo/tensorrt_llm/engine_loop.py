"""The one thread that owns openvino_genai's ContinuousBatchingPipeline.

Each round takes cancellations, starts waiting requests for which there is room, runs one engine
step for all running ones and hands their new tokens out. Nobody else touches the pipeline, and the
handles' blocking ``read()`` is only called when ``can_read()`` says there is something.

Four properties of the engine shape this loop. When a step can schedule nothing, the engine drops
*every* request as IGNORED, so whatever it dropped without being told to is started again with the
tokens it had. What is cancelled gives its blocks back only in the following step. And of two
prompts in one step that begin alike up to the middle of a KV block, one is computed on keys and
values that are not the ones of its own beginning, where the engine finds that part of a block in
its cache (openvino_genai 2026.4): so the second one waits until the first has its first token.
A prompt that is to be scored gets another one's logits where a request in front of it does anything
else in the same step, since only scored prompts are counted there (``_fill_prompt_log_probs`` of
openvino.genai): so it waits until nothing but such prompts runs. What starts after it is harmless.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .admission import Capacity, check_request
from .engine_stats import EngineStats, Levels
from .finiteness import NO_NUMBERS, Finiteness, simple_prompt
from .generation import Generation
from .kv_blocks import KvBlocks, shared_tokens
from .request import GenerationRequest, Guide, RequestError, Sink
from .sampling import generation_config
from .settings import TOKENS_PER_BLOCK, EngineSettings, blocks

CheckGuide = Callable[[Guide, Callable[[RequestError | None], None]], None]
"""Tries a guide and calls back, sooner or later, with why it is refused or None."""

MAX_EVICTIONS = 8
"""Times in a row a request is started again without having gained a token."""


class EngineLoop:
    """Runs requests through a pipeline until closed.

    Args:
        pipeline: A ContinuousBatchingPipeline or something that behaves like one.
        genai: The ``openvino_genai`` module.
        tensor: Makes the engine's tensor from an int64 [1, n] array.
        settings: The engine's limits.
        after_step: Called by the engine's thread after each round, with its step's seconds.
        check_guide: Tries the guides of requests before the engine sees them.
        textless: Ids that no guide allows.
        broken: Called last by the engine's thread, with the error, when the engine has failed and
            every request was told so; not when it fails while being closed.
    """

    def __init__(
        self,
        pipeline: Any,
        genai: Any,
        tensor: Callable[[Any], Any],
        settings: EngineSettings,
        *,
        after_step: Callable[[float], None] = lambda _: None,
        check_guide: CheckGuide = lambda _, done: done(None),
        textless: frozenset[int] = frozenset(),
        broken: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self.stats = EngineStats(settings)
        self._pipeline = pipeline
        self._genai = genai
        self._tensor = tensor
        self._settings = settings
        self._after_step = after_step
        self._check_guide = check_guide
        self._textless = textless
        self._broken = broken
        self._capacity = Capacity(settings)
        self._shared = (
            KvBlocks(settings.engine_kv_blocks) if settings.enable_prefix_caching else None
        )
        # The engine is bricked by an id that is used twice, so clients' ids never reach it.
        self._engine_ids = itertools.count()
        self._finiteness = Finiteness(
            pipeline, genai, tensor, settings.vocab_size, self._engine_ids
        )
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._checking: list[Generation] = []
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._leaving: list[Generation] = []
        self._by_client_id: dict[str, list[Generation]] = {}
        self._closing = False
        self._failure: RequestError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()

    def submit(self, request: GenerationRequest, sink: Sink) -> Generation:
        """Queues a request; ``sink`` gets its tokens.

        Raises:
            RequestError: The engine cannot do it, the queue is full, or the engine has failed.
        """
        return self.submit_all([(request, sink)])[0]

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, Sink]]) -> list[Generation]:
        """Queues the requests of a batch: all of them or none.

        Raises:
            RequestError: The engine cannot do one of them, the queue has no room for them, or the
                engine has failed.
        """
        for request, _ in requests:
            check_request(request, self._settings)
        generations = [
            Generation(request, sink, textless=self._never_allowed(request.guide))
            for request, sink in requests
        ]
        limit = self._settings.max_queue_size
        with self._wake:
            if self._failure is not None:
                raise RequestError(str(self._failure), self._failure.code)
            if self._closing:
                raise RequestError("the engine is shutting down", "UNAVAILABLE")
            room = limit + self._settings.max_batch_size - self._in_flight()
            if limit and len(generations) > room:
                raise RequestError(
                    f"Maximum queue size of {limit} has been reached, please try again later",
                    "UNAVAILABLE",
                )
            for generation in generations:
                guided = generation.request.guide is not None
                (self._checking if guided else self._waiting).append(generation)
                if client_id := generation.request.client_id:
                    self._by_client_id.setdefault(client_id, []).append(generation)
            self._wake.notify()
        for generation in generations:
            if guide := generation.request.guide:
                self._check_guide(guide, functools.partial(self._checked, generation))
        return generations

    def _never_allowed(self, guide: Guide | None) -> frozenset[int]:
        """The ids that leave a guide; those that may end its text have no text either."""
        return frozenset() if guide is None else self._textless - guide.end_ids

    def _checked(self, generation: Generation, refusal: RequestError | None) -> None:
        with self._wake:
            if generation in self._checking:  # nobody has ended it meanwhile
                self._checking.remove(generation)
                generation.refusal = refusal
                self._waiting.append(generation)
                self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """Ends a request early; its sink gets an empty last response. Harmless when it is over."""
        with self._wake:
            generation.cancelled = True
            self._wake.notify()

    def cancel_client_id(self, client_id: str) -> int:
        """Ends every request that a client gave this id; returns how many there were."""
        with self._lock:
            generations = list(self._by_client_id.get(client_id, ()))
        for generation in generations:
            self.cancel(generation)
        return len(generations)

    def levels(self) -> Levels:
        """What there is now; any thread."""
        with self._lock:
            running, waiting = list(self._running), list(self._waiting)
            checking = len(self._checking)
        return Levels(
            running=len(running),
            context=sum(not generation.first_token for generation in running),
            waiting=len(waiting) + checking,
            paused=sum(generation.paused for generation in (*running, *waiting)),
            used_blocks=self._used_blocks(running),
            reserved_blocks=self._settings.num_kv_blocks - self._capacity.free_blocks,
        )

    def _used_blocks(self, running: Sequence[Generation]) -> int:
        """KV blocks that requests hold; all of a prompt's count as soon as it is begun."""
        if self._shared is None:
            tokens = (g.request.prompt.size + max(0, len(g.generated) - 1) for g in running)
            return sum(map(blocks, tokens))
        begun = (
            blocks(g.prompt().size) - (g.held.reused if g.held else 0)
            for g in running
            if g.computes_prompt
        )
        return min(self._shared.used + sum(begun), self._settings.num_kv_blocks)

    def close(self, timeout: float = 30.0) -> None:
        """Fails what is unfinished, lets the pipeline free it, and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _in_flight(self) -> int:
        return len(self._checking) + len(self._waiting) + len(self._running)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._start_waiting()
                step_seconds = self._step() if self._running or self._leaving else 0.0
                self._after_step(step_seconds)
            self._shut_down()
        except Exception as error:
            self._break(error)

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(self._has_work)
            return not self._closing

    def _has_work(self) -> bool:
        listed = self._waiting or self._running or self._leaving
        return bool(self._closing or listed or any(g.cancelled for g in self._checking))

    def _drop_cancelled(self) -> None:
        """Ends what the client has given up, and what waits in vain."""
        with self._lock:
            cancelled = [g for g in self._listed() if g.cancelled]
            refused = [g for g in self._waiting if g.refusal is not None and not g.cancelled]
        for generation in cancelled:
            generation.done = True
            generation.sink.tokens([], [], last=True)
            self.stats.ended("cancelled")
            self._forget(generation)
        for generation in refused:
            assert generation.refusal is not None
            self._fail(generation, generation.refusal, "refused")

    def _listed(self) -> list[Generation]:
        return [*self._checking, *self._waiting, *self._running]

    def _start_waiting(self) -> None:
        """Starts requests in their order; one that must wait holds up those behind it."""
        while self._waiting:
            generation = self._waiting[0]
            request = generation.request
            if self._shared is not None and self._shares_unfinished_block(generation):
                return
            if generation.echoes and not self._nothing_but_scored_prompts():
                return
            promised = self._capacity.take(
                request.prompt.size, request.max_new_tokens, whole=generation.evictions > 0
            )
            if promised is None:
                return
            config = generation_config(
                self._genai,
                request,
                already_generated=generation.kept,
                echo=generation.echoes,
            )
            try:
                generation.handle = self._pipeline.add_request(
                    next(self._engine_ids), self._tensor(generation.prompt()), config
                )
            except RuntimeError as error:
                self._capacity.give_back(promised)
                refusal = RequestError(f"the engine refused the request: {error}")
                self._fail(generation, refusal, "refused")
                continue
            generation.promised = promised
            if self._shared is not None:
                generation.held = self._shared.start(generation.prompt()[0])
            self.stats.started(generation)
            generation.sink.scheduled(generation.held.reused if generation.held else 0)
            with self._lock:
                self._waiting.popleft()
                self._running.append(generation)

    def _shares_unfinished_block(self, generation: Generation) -> bool:
        """Whether its prompt begins as one that is being computed, up to the middle of a block."""
        computing = [g for g in self._running if g.computes_prompt]
        prompt = generation.prompt()[0] if computing else None
        return any(
            shared_tokens(prompt, other.prompt()[0]) % TOKENS_PER_BLOCK for other in computing
        )

    def _nothing_but_scored_prompts(self) -> bool:
        """Whether all that runs is prompts being scored, which end with their first token."""
        return not self._leaving and all(
            running.echoes and running.request.max_new_tokens == 1 for running in self._running
        )

    def _step(self) -> float:
        leaving, self._leaving = self._leaving, []
        started = time.perf_counter()
        self._pipeline.step()
        ended = time.perf_counter()
        self.stats.stepped(ended)
        for generation in leaving:
            self._capacity.give_back(generation.promised)
        for generation in list(self._running):
            self._collect(generation)
        return ended - started

    def _collect(self, generation: Generation) -> None:
        handle = generation.handle
        before = len(generation.generated)
        heard = complete = False
        try:
            while not complete and handle.can_read():
                heard = True
                for output in handle.read().values():
                    self._doubt(generation, output.generated_ids, output.generated_log_probs)
                    complete = generation.accept(output.generated_ids, output.generated_log_probs)
        except RequestError as error:
            self._fail(generation, error)
            return
        self.stats.generated(generation, len(generation.generated) - before, heard=heard)
        self._note_blocks(generation)
        if complete:
            self.stats.finished(generation)
            self._forget(generation)
        elif handle.get_status() != self._genai.GenerationStatus.RUNNING:
            self._start_again(generation)

    def _doubt(
        self, generation: Generation, ids: Sequence[int], log_probs: Sequence[float]
    ) -> None:
        """Refuses to hand on what the engine did not compute.

        Raises:
            RequestError: It computes no numbers for this request.
            RuntimeError: It computes none for any.
        """
        if not self._finiteness.doubts(generation, ids, log_probs):
            return
        prompt = np.concatenate(
            (generation.request.prompt, np.asarray(generation.generated, np.int64))
        )
        promised = self._capacity.take(prompt.size, 1, whole=True)
        if promised is not None:
            finite = self._finiteness.finite(prompt)
            self._capacity.give_back(promised)
            if finite:
                return
        # A place for this one is kept free (Engine).
        if not self._finiteness.finite(simple_prompt(self._settings)):
            raise RuntimeError(NO_NUMBERS)
        if promised is not None:
            raise RequestError(f"for this request {NO_NUMBERS}", "INTERNAL")

    def _note_blocks(self, generation: Generation) -> None:
        held = generation.held
        length = generation.request.prompt.size + len(generation.generated) - 1
        if self._shared is None or held is None or length < held.grows_at:
            return
        if computed := generation.computed():
            self._shared.grow(held, computed)

    def _release_blocks(self, generation: Generation) -> None:
        if self._shared is not None and generation.held is not None:
            self._shared.end(generation.held, generation.computed())
            generation.held = None

    def _start_again(self, generation: Generation) -> None:
        """Queues a request that the engine dropped, ahead of those that never ran."""
        generation.evicted()
        self.stats.evicted(generation)
        if generation.evictions > MAX_EVICTIONS:
            message = f"the engine dropped the request {MAX_EVICTIONS} times: the KV cache is full"
            self._fail(generation, RequestError(message, "UNAVAILABLE"))
            return
        self._capacity.give_back(generation.promised)
        self._release_blocks(generation)
        generation.promised, generation.handle = 0, None
        with self._lock:
            self._running.remove(generation)
            self._waiting.appendleft(generation)

    def _fail(self, generation: Generation, error: RequestError, outcome: str = "failed") -> None:
        generation.done = True
        generation.sink.fail(error)
        self.stats.ended(outcome)
        self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        """Takes a request off every list; the engine frees a cancelled one in its next step."""
        if generation.handle is not None:
            self._release_blocks(generation)
            if generation.handle.get_status() == self._genai.GenerationStatus.RUNNING:
                generation.handle.cancel()
                self._leaving.append(generation)
            else:
                self._capacity.give_back(generation.promised)
            generation.handle = None
        with self._lock:
            if generation in self._running:
                self._running.remove(generation)
            elif generation in self._checking:
                self._checking.remove(generation)
            else:
                self._waiting.remove(generation)
            same_id = self._by_client_id.get(generation.request.client_id)
            if same_id:
                same_id.remove(generation)
                if not same_id:
                    del self._by_client_id[generation.request.client_id]

    def _shut_down(self) -> None:
        with self._lock:
            unfinished = self._listed()
        for generation in unfinished:
            self._fail(generation, RequestError("the engine is shutting down", "UNAVAILABLE"))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._after_step(0.0)

    def _break(self, error: Exception) -> None:
        """Fails every request, now and later: after an exception the engine's state is unknown."""
        failure = RequestError(
            "the engine stopped working and its process ends; the reason is in the server's log",
            "INTERNAL",
        )
        with self._lock:
            closing = self._closing
            self._failure = failure
            generations = self._listed()
            self._checking.clear()
            self._waiting.clear()
            self._running.clear()
            self._by_client_id.clear()
        for generation in generations:
            if not generation.done:
                generation.sink.fail(failure)
                self.stats.ended("failed")
        self._after_step(0.0)
        if not closing:
            self._broken(error)

"""The one thread that owns ``tensorrt_llm.LLM``: an event loop with a task for each request.

The LLM batches in flight by itself, so this loop only hands requests over and takes tokens back. Of
each answer it asks for a stream, whatever its client asked for: so a stop word of several tokens, a
client that has gone and the time of the first token are seen when they come.

``CompletionOutput.token_ids`` is all that was generated so far, in every response of a stream, and
so are the log-probabilities (TensorRT-LLM, tensorrt_llm/executor/result.py); what is new is the
difference.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .admission import check_request
from .engine_stats import EngineStats, Levels
from .generation import Generation
from .request import GenerationRequest, RequestError, Sink
from .sampling import check_sampler, sampling_params
from .settings import EngineSettings

Open = Callable[[], tuple[Any, Any]]
"""Opens the LLM; returns it and the class ``SamplingParams``."""

OPEN_TIMEOUT_S = 3600.0
"""A large model comes from a slow disk, and CUDA graphs are captured."""

_COMPLETE = ("stop", "length")
"""``finish_reason`` of an answer that is whole."""

REQUESTS_OWN = ("RequestError", "ValueError", "TypeError")
"""Errors that are one request's: the LLM's own for a request that failed (``RequestError`` of
tensorrt_llm.executor), and what it raises for arguments that it refuses."""


class EngineLoop:
    """Runs requests through an LLM until closed.

    Args:
        open_llm: Opens it; called once, in the loop's thread.
        settings: The engine's limits.
        sampler: ``sampler_type`` that it runs with.
        after_step: Called by the loop's thread when there is something to send, with the seconds
            since the last time.
        broken: Called last by the loop's thread, with the error, when the engine has failed and
            every request was told so.
    """

    def __init__(
        self,
        open_llm: Open,
        settings: EngineSettings,
        *,
        sampler: str = "auto",
        after_step: Callable[[float], None] = lambda _: None,
        broken: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self.stats = EngineStats(settings)
        self._open_llm, self._settings, self._sampler = open_llm, settings, sampler
        self._after_step, self._broken = after_step, broken
        self._llm: Any = None
        self._make: Any = None
        self._lock = threading.Lock()
        self._all: list[Generation] = []
        self._by_client_id: dict[str, list[Generation]] = {}
        self._told: Mapping[str, Any] = {}
        self._closing = False
        self._failure: RequestError | None = None
        self._opened = threading.Event()
        self._refused: BaseException | None = None
        self._publishing = False
        self._published = time.perf_counter()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread and waits until the LLM is open.

        Raises:
            RuntimeError: It could not be opened, with the LLM's own reason.
        """
        self._thread.start()
        if not self._opened.wait(OPEN_TIMEOUT_S):
            raise RuntimeError(f"the LLM was not open after {OPEN_TIMEOUT_S:.0f} s")
        if self._refused is not None:
            raise RuntimeError(f"the LLM could not be opened: {self._refused}") from self._refused

    def submit_all(self, requests: Sequence[tuple[GenerationRequest, Sink]]) -> list[Generation]:
        """Hands the requests of a batch over: all of them or none.

        Raises:
            RequestError: The engine cannot do one of them, the queue has no room for them, or the
                engine has failed.
        """
        for request, _ in requests:
            check_request(request, self._settings)
            check_sampler(request.sampling, self._sampler)
        generations = [Generation(request, sink) for request, sink in requests]
        limit = self._settings.max_queue_size
        with self._lock:
            if self._failure is not None:
                raise RequestError(str(self._failure), self._failure.code)
            if self._closing:
                raise RequestError("the engine is shutting down", "UNAVAILABLE")
            room = limit + self._settings.max_batch_size - len(self._all)
            if limit and len(generations) > room:
                raise RequestError(
                    f"Maximum queue size of {limit} has been reached, please try again later",
                    "UNAVAILABLE",
                )
            for generation in generations:
                self._all.append(generation)
                if client_id := generation.request.client_id:
                    self._by_client_id.setdefault(client_id, []).append(generation)
        for generation in generations:
            self._soon(self._begin, generation)
        return generations

    def cancel(self, generation: Generation) -> None:
        """Ends a request early; its sink gets an empty last response. Harmless when it is over."""
        self._soon(self._drop, generation)

    def cancel_client_id(self, client_id: str) -> int:
        """Ends every request that a client gave this id; returns how many there were."""
        with self._lock:
            generations = list(self._by_client_id.get(client_id, ()))
        for generation in generations:
            self.cancel(generation)
        return len(generations)

    def levels(self) -> Levels:
        """What there is now; any thread. Of KV blocks and memory, what the LLM said last."""
        with self._lock:
            listed = list(self._all)
        told = self._told if listed else {}
        waiting = min(int(told.get("numQueuedRequests") or 0), len(listed))
        running = len(listed) - waiting
        batch = told.get("inflightBatchingStats") or {}
        blocks = self._told.get("kvCacheStats") or {}
        context = sum(not generation.first_token for generation in listed) - waiting
        return Levels(
            running=running,
            context=min(max(context, 0), running),
            waiting=waiting,
            paused=int(batch.get("numPausedRequests") or 0),
            used_blocks=int(blocks.get("usedNumBlocks") or 0),
            reserved_blocks=int(blocks.get("usedNumBlocks") or 0),
            gpu_bytes=int(self._told.get("gpuMemUsage") or 0),
            pinned_bytes=int(self._told.get("pinnedMemUsage") or 0),
        )

    def close(self, timeout: float = 30.0) -> None:
        """Fails what is unfinished, ends the LLM, and the thread."""
        with self._lock:
            self._closing = True
        if self._thread.is_alive():
            self._soon(self._loop.stop)
            self._thread.join(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._llm, self._make = self._open_llm()
        except BaseException as error:
            self._refused = error
            self._loop.close()
            return
        finally:
            self._opened.set()
        self._spawn(self._listen())
        self._loop.run_forever()
        self._shut_down()
        self._loop.close()

    def _soon(self, work: Callable[..., None], *arguments: Any) -> None:
        """Does something in the loop's thread; nothing any more once that has ended."""
        try:
            self._loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        # The loop itself keeps no more than a weak reference.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, generation: Generation) -> None:
        if not generation.done:
            self._spawn(self._serve(generation))

    async def _serve(self, generation: Generation) -> None:
        request = generation.request
        try:
            params = sampling_params(self._make, request, self._settings.end_ids)
            prompt = [int(token) for token in request.prompt]
            self.stats.started(generation)
            generation.sink.scheduled(0)
            generation.handle = self._llm.generate_async(prompt, params, streaming=True)
            seen = 0
            async for output in generation.handle:
                if generation.done:
                    return
                seen = self._take(generation, output.outputs[0], seen)
                if generation.done:
                    if not output.finished:
                        generation.handle.abort()
                    return
            self._fail(generation, RequestError("the LLM ended the answer half-way", "UNAVAILABLE"))
        except asyncio.CancelledError:
            raise
        except RequestError as error:
            self._fail(generation, error)
        except Exception as error:
            if type(error).__name__ not in REQUESTS_OWN:
                self._break(error)
                return
            self._fail(generation, RequestError(f"the LLM failed at it: {error}", "INTERNAL"))

    def _take(self, generation: Generation, completion: Any, seen: int) -> int:
        """Hands on what is new of an answer; returns how many tokens it has by now."""
        ids = list(completion.token_ids)
        scores: list[float] = []
        if generation.request.log_probs:
            scores = _log_probs(ids, completion.logprobs or (), seen)
        before = len(generation.generated)
        complete = generation.accept(ids[seen:], scores) if len(ids) > seen else False
        reason = completion.finish_reason
        if not complete and reason is not None:
            if reason not in _COMPLETE:
                raise RequestError(f"the LLM ended the answer: {reason}", "UNAVAILABLE")
            # The token that ends a text may be left out by the LLM itself.
            generation.done = complete = True
            generation.sink.tokens([], [], last=True)
        self.stats.stepped(time.perf_counter())
        self.stats.generated(generation, len(generation.generated) - before, heard=True)
        if complete:
            self.stats.finished(generation)
            self._forget(generation)
        self._publish_soon()
        return len(ids)

    def _drop(self, generation: Generation) -> None:
        if generation.done or self._failure is not None:
            return
        generation.done = True
        if generation.handle is not None:
            generation.handle.abort()
        generation.sink.tokens([], [], last=True)
        self.stats.ended("cancelled")
        self._forget(generation)
        self._publish_soon()

    def _fail(self, generation: Generation, error: RequestError) -> None:
        if generation.done:
            return
        generation.done = True
        generation.sink.fail(error)
        self.stats.ended("failed")
        self._forget(generation)
        self._publish_soon()

    def _forget(self, generation: Generation) -> None:
        with self._lock:
            if generation in self._all:
                self._all.remove(generation)
            same_id = self._by_client_id.get(generation.request.client_id)
            if same_id and generation in same_id:
                same_id.remove(generation)
                if not same_id:
                    del self._by_client_id[generation.request.client_id]

    def _publish_soon(self) -> None:
        """Hands over once for all answers that the loop has ready."""
        if not self._publishing:
            self._publishing = True
            self._loop.call_soon(self._publish)

    def _publish(self) -> None:
        self._publishing = False
        now = time.perf_counter()
        self._after_step(now - self._published)
        self._published = now

    async def _listen(self) -> None:
        """Keeps what the LLM says of itself, where ``enable_iter_perf_stats`` lets it."""
        pause = self._settings.stats_check_period
        while True:
            try:
                async for told in self._llm.get_stats_async(timeout=pause):
                    self._told = told
                    self._count(told)
            except (asyncio.TimeoutError, TimeoutError):
                pass
            await asyncio.sleep(pause)

    def _count(self, told: Mapping[str, Any]) -> None:
        blocks = told.get("kvCacheStats") or {}
        self.stats.max_blocks = int(blocks.get("maxNumBlocks") or self.stats.max_blocks)
        self.stats.reused_blocks = int(blocks.get("reusedBlocks") or self.stats.reused_blocks)
        self.stats.missed_blocks = int(blocks.get("missedBlocks") or self.stats.missed_blocks)

    def _unfinished(self) -> list[Generation]:
        with self._lock:
            return list(self._all)

    def _shut_down(self) -> None:
        for generation in self._unfinished():
            self._fail(generation, RequestError("the engine is shutting down", "UNAVAILABLE"))
        self._after_step(0.0)
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._llm.shutdown()

    def _break(self, error: Exception) -> None:
        """Fails every request, now and later: of an LLM that has failed nothing is known."""
        failure = RequestError(
            "the engine stopped working and its process ends; the reason is in the server's log",
            "INTERNAL",
        )
        with self._lock:
            if self._failure is not None:
                return
            self._failure, closing = failure, self._closing
        for generation in self._unfinished():
            self._fail(generation, failure)
        self._after_step(0.0)
        if not closing:
            self._broken(error)


def _log_probs(ids: Sequence[int], scores: Sequence[Any], seen: int) -> list[float]:
    """The natural log-probability of each new token.

    Args:
        ids: All tokens so far.
        scores: For each of them those of the likeliest tokens and its own, by token id.
        seen: Tokens that were handed on before.
    """
    if len(scores) < len(ids):
        raise RequestError(
            f"the LLM gave {len(scores)} log-probabilities for {len(ids)} tokens", "INTERNAL"
        )
    return [
        float(getattr(score[token], "logprob", score[token]))
        for token, score in zip(ids[seen:], scores[seen : len(ids)], strict=True)
    ]

"""Draft-target speculation: a smaller engine guesses tokens, and the engine accepts some at a time.

Each round the draft continues the text by a few tokens, and the engine is given the same text with
these tokens as guesses. It answers with the guesses that it would have chosen itself, up to the
first other one, and one token of its own (the loop is that of upstream's lib/decode.py). Both keep
the text so far in their KV caches.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from .batch import scalar
from .calls import CallError, Models

Array = npt.NDArray[Any]

_ONLY_IDS = ["output_ids", "sequence_length"]
# What the engine applies to the draft's guesses too late to be worth asking the draft for.
_NOT_FOR_THE_DRAFT = (
    "lora_task_id",
    "lora_weights",
    "lora_config",
    "prompt_embedding_table",
    "prompt_vocab_size",
    "return_perf_metrics",
)
# What a round would answer for itself alone.
_BY_ROUND = ("return_log_probs", "return_context_logits", "return_generation_logits")
# Of a request's times, those that its first round decides.
_OF_THE_FIRST = frozenset(("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns"))
_GUIDE = "guided_decoding_guide_type"


class Speculation:
    """Answers requests with ``num_draft_tokens``.

    Args:
        engine: The models behind this one.
        draft: The same with the draft in the engine's place; None where there is none.
        max_draft_len: Guesses that the engine takes at a time.
    """

    def __init__(self, engine: Models, draft: Models | None, max_draft_len: int) -> None:
        self._engine, self._draft, self._limit = engine, draft, max_draft_len
        self._running: dict[str, threading.Event] = {}

    def wanted(self, inputs: Mapping[str, Array]) -> int:
        """How many tokens the draft shall guess at a time; 0 asks for none.

        Raises:
            CallError: The request asks for what speculation cannot give.
        """
        if scalar(inputs, "use_draft_logits"):
            # model_instance_state.cc never enables gather_generation_logits of the executor.
            raise CallError(
                "use_draft_logits is not supported: Triton's backend returns no generation logits; "
                "leave it out, and guesses are accepted by their tokens",
                pb_utils.TritonError.UNSUPPORTED,
            )
        count = int(scalar(inputs, "num_draft_tokens") or 0)
        if count == 0:
            return 0
        if self._draft is None:
            raise CallError(
                f"num_draft_tokens {count} is not supported: this repository has no draft model; "
                "leave it out, or make the repository again with compile.tensorrt.draft and "
                "serve.draft_repository in the recipe",
                pb_utils.TritonError.UNSUPPORTED,
            )
        if not 0 < count <= self._limit:
            raise CallError(
                f"num_draft_tokens must be between 0 and {self._limit}, for which the engine was "
                f"built (compile.tensorrt.draft.max_draft_len), got {count}"
            )
        asked = [name for name in _BY_ROUND if scalar(inputs, name)]
        asked += [_GUIDE] if _GUIDE in inputs else []
        # Of top_k and top_p, 0 is not given; neither of them is greedy decoding.
        top_k, top_p = scalar(inputs, "top_k") or 0, scalar(inputs, "top_p") or 0.0
        if top_k > 1 or (top_k < 1 and top_p > 0.0):
            # Each round begins the random numbers of its seed again.
            asked.append("top_k" if top_k else "top_p")
        if asked:
            raise CallError(
                f"{', '.join(asked)} cannot be combined with num_draft_tokens, whose rounds are "
                "requests of their own and greedy; leave one of them out",
                pb_utils.TritonError.UNSUPPORTED,
            )
        return count

    def stop(self, request_id: str) -> None:
        """Ends a request early, whichever engine has it; harmless when it is over."""
        running = self._running.get(request_id)
        if running is not None:
            running.set()
            if self._draft is not None:
                self._draft.stop(request_id)
        self._engine.stop(request_id)

    def generate(
        self,
        count: int,
        inputs: Mapping[str, Array],
        tokens: Mapping[str, Array],
        outputs: list[str],
        *,
        request_id: str,
    ) -> Iterator[dict[str, Array]]:
        """The engine's responses, one for each round, with the new tokens of the round.

        Args:
            count: The result of :meth:`wanted`.
            inputs: As for :meth:`Models.generate`, as are the others.

        Raises:
            CallError: An engine refused the request or failed.
        """
        with self._stoppable(request_id) as stopped:
            rounds = _Rounds(count, tokens)
            while rounds.left > 0 and not stopped.is_set():
                guesses = self._guess(rounds, inputs, request_id) if rounds.guessing else []
                if stopped.is_set():
                    return
                answer = self._ask(rounds, guesses, inputs, outputs, request_id)
                new = answer["output_ids"].reshape(-1).tolist()
                kept = rounds.take(new, guesses)
                yield {**answer, **rounds.outputs(answer, kept)}
                if rounds.ended:
                    return

    @contextmanager
    def _stoppable(self, request_id: str) -> Iterator[threading.Event]:
        self._running[request_id] = stopped = threading.Event()
        try:
            yield stopped
        finally:
            with suppress(KeyError):
                del self._running[request_id]

    def _guess(self, rounds: _Rounds, inputs: Mapping[str, Array], request_id: str) -> list[int]:
        assert self._draft is not None
        # It would otherwise end the text where the engine may not (upstream sets this as well).
        length = rounds.guesses
        given = {name: v for name, v in inputs.items() if name not in _NOT_FOR_THE_DRAFT}
        given["min_tokens"] = np.array([length], np.int32)
        answer = _whole(
            self._draft.generate(
                given,
                rounds.request(length),
                _ONLY_IDS,
                request_id=request_id,
                streaming=False,
            )
        )
        return [int(token) for token in answer["output_ids"].reshape(-1)]

    def _ask(
        self,
        rounds: _Rounds,
        guesses: Sequence[int],
        inputs: Mapping[str, Array],
        outputs: list[str],
        request_id: str,
    ) -> dict[str, Array]:
        request = rounds.request(len(guesses) + 1)
        if guesses:
            request["draft_input_ids"] = np.array([guesses], np.int32)
        given = dict(inputs)
        if "min_tokens" in inputs:
            least = int(inputs["min_tokens"].item()) - rounds.generated
            given["min_tokens"] = np.array([max(least, 0)], np.int32)
        return _whole(
            self._engine.generate(given, request, outputs, request_id=request_id, streaming=False)
        )


class _Rounds:
    """The text so far, and what the next round asks for.

    Attributes:
        ended: Whether the engine, or a stop word, has ended the text.
    """

    def __init__(self, count: int, tokens: Mapping[str, Array]) -> None:
        self._count, self._tokens = count, dict(tokens)
        self._ids = tokens["input_ids"].reshape(-1).tolist()
        self._prompt = len(self._ids)
        self._most = int(tokens["request_output_len"].item())
        self._stop_words = _words(tokens.get("stop_words_list"))
        self._certain, self.ended = True, False
        self._first: dict[str, Array] = {}
        self._guessed = self._accepted = 0

    @property
    def generated(self) -> int:
        """Tokens behind the prompt."""
        return len(self._ids) - self._prompt

    @property
    def left(self) -> int:
        """Tokens that may come."""
        return self._most - self.generated

    @property
    def guesses(self) -> int:
        """How many tokens to guess next: the engine adds one of its own."""
        return min(self._count, self.left - 1)

    @property
    def guessing(self) -> bool:
        """Whether to guess at all in this round."""
        return self._certain and self.guesses > 0

    def request(self, length: int) -> dict[str, Array]:
        """The token inputs of an engine that shall go on for ``length`` tokens."""
        return {
            **self._tokens,
            "input_ids": np.array([self._ids], np.int32),
            "input_lengths": np.array([[len(self._ids)]], np.int32),
            "request_output_len": np.array([[length]], np.int32),
        }

    def take(self, new: Sequence[int], guesses: Sequence[int]) -> list[int]:
        """Takes the engine's tokens of a round; those up to a stop word are its result.

        Where all new tokens are guesses, the engine has ended the text, or has discarded a guess
        to fill a chunk (fitDraftTokens in batch_manager/microBatchScheduler.cpp) and its own token
        was the same. Only an answer without guesses tells: one without a token ends the text.
        """
        pairs = zip(guesses, new, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(guesses), len(new)))
        self._guessed += len(guesses)
        self._accepted += same
        self._certain = not guesses or len(new) > same
        self.ended = not new
        for place, token in enumerate(new, 1):
            self._ids.append(token)
            if any(self._ids[-len(word) :] == word for word in self._stop_words):
                self.ended = True
                return list(new[:place])
        return list(new)

    def outputs(self, answer: Mapping[str, Array], kept: Sequence[int]) -> dict[str, Array]:
        """What the request has of all rounds, where the answer has it of one."""
        self._first = self._first or {name: answer[name] for name in _OF_THE_FIRST & answer.keys()}
        rate = self._accepted / self._guessed if self._guessed else 0.0
        totals = {
            "acceptance_rate": np.array([[rate]], np.float32),
            "total_accepted_draft_tokens": np.array([[self._accepted]], np.int32),
            "total_draft_tokens": np.array([[self._guessed]], np.int32),
        }
        return {
            **self._first,
            **{name: value for name, value in totals.items() if name in answer},
            "output_ids": np.array([[kept]], np.int32).reshape(1, 1, -1),
            "sequence_length": np.array([[len(kept)]], np.int32),
        }


def _whole(responses: Iterator[dict[str, Array]]) -> dict[str, Array]:
    """The one answer of a request that is not streamed."""
    answer: dict[str, Array] = {}
    for response in responses:
        answer = response
    if "output_ids" not in answer:
        raise CallError("an engine ended without an answer", pb_utils.TritonError.INTERNAL)
    return answer


def _words(array: Array | None) -> list[list[int]]:
    """Stop words of NVIDIA's format, int32 [1, 2, n]: ids, and where each word ends."""
    if array is None:
        return []
    ids, ends = array.reshape(2, -1).tolist()
    starts = [0, *ends]
    return [ids[start:end] for start, end in zip(starts, ends, strict=False) if end > start >= 0]

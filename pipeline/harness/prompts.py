"""How likely a server's engine holds given tokens, over gRPC; needs the client alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property

from pipeline.errors import StageError, UnsupportedError
from pipeline.evaluation.tasks.encoding import Pair
from pipeline.triton.tensors import ENGINE
from trtllm_client import Client, ClientError, ModelMetadata, Tensors, add_input, new_message

STREAMS = 8
"""Requests at a time."""

ASKS, SCORES = "return_prompt_log_probs", "prompt_log_probs"
_NEEDED = ("output_ids", "sequence_length")

Ids = tuple[int, ...]


class Prompts:
    """Sends token ids to the model ``tensorrt_llm``.

    Args:
        client: Of the server.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def likelihoods(
        self,
        pairs: Sequence[Pair],
        *,
        greedy: bool = True,
        advance: Callable[[int], object] = lambda _pairs: None,
    ) -> list[tuple[float, bool]]:
        """Scores every continuation.

        The whole text is one prompt, whose tokens the engine scores. Whether a continuation is the
        greedy one is what a second request tells: the engine goes on with the context, once for all
        continuations of it, as long as one of them agrees.

        Args:
            pairs: Contexts with their continuations, as ids.
            greedy: Whether that second request is sent; without it no continuation is greedy.
            advance: Called with how many pairs more are scored.

        Returns:
            For each pair the sum of its continuation's natural log-probabilities, and whether each
            of its tokens is the most likely one.

        Raises:
            UnsupportedError: The server cannot tell.
            StageError: It gave another number of log-probabilities than was asked for.
            ClientError: It did not answer.
        """
        self._check()
        texts = [(*pair.ids, pair.continuation[-1]) for pair in pairs]
        together: dict[Ids, list[Ids]] = {}
        for text, pair in zip(texts, pairs, strict=True):
            context = text[: -len(pair.continuation)]
            together.setdefault(context, []).append(pair.continuation)

        def nats(place: int) -> float:
            return sum(self.log_probs(texts[place])[-len(pairs[place].continuation) :])

        with ThreadPoolExecutor(STREAMS) as pool:
            try:
                sums = []
                for found in pool.map(nats, range(len(pairs))):
                    sums.append(found)
                    advance(1)
                best: dict[Ids, Ids] = {}
                if greedy:
                    tokens = pool.map(self._greedy, together, together.values())
                    best = dict(zip(together, tokens, strict=True))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [
            (
                total,
                best.get(text[: -len(pair.continuation)], ())[: len(pair.continuation)]
                == pair.continuation,
            )
            for total, text, pair in zip(sums, texts, pairs, strict=True)
        ]

    def log_probs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Asks for the natural log-probability of each id but the first.

        Raises:
            UnsupportedError: The server refuses to tell.
            StageError: It gave another number of them.
            ClientError: It did not answer.
        """
        message = self._message(ids, 1, outputs=(*_NEEDED, SCORES))
        add_input(message, ASKS, [True], datatype="BOOL")
        try:
            answers = list(self._client.responses(message))
        except ClientError as error:
            if ASKS not in error.what:
                raise
            raise self._unsupported(error.what) from error
        found = [float(value) for answer in answers for value in _values(answer, SCORES)]
        if len(found) != len(ids) - 1:
            raise StageError(
                f"the server gave {len(found)} log-probabilities for a prompt of {len(ids)} tokens",
                where=self._client.url,
            )
        return tuple(found)

    def _greedy(self, context: Ids, continuations: Sequence[Ids]) -> Ids:
        """The most likely tokens after a context, as far as a continuation agrees."""
        longest = max(map(len, continuations))
        message = self._message(context, longest, outputs=_NEEDED)
        add_input(message, "streaming", [self._engine.decoupled], datatype="BOOL")
        tokens: Ids = ()
        with closing(self._client.responses(message)) as answers:
            for answer in answers:
                tokens += tuple(int(value) for value in _values(answer, "output_ids"))
                agree = any(
                    after[: len(tokens)] == tokens[: len(after)] and len(after) > len(tokens)
                    for after in continuations
                )
                if not agree:
                    break
        return tokens

    def _message(self, ids: Sequence[int], tokens: int, outputs: Sequence[str]) -> object:
        message = new_message(ENGINE, outputs=outputs)
        add_input(message, "input_ids", list(ids), datatype="INT32")
        add_input(message, "input_lengths", [len(ids)], datatype="INT32")
        add_input(message, "request_output_len", [tokens], datatype="INT32")
        add_input(message, "exclude_input_in_output", [True], datatype="BOOL")
        return message

    @cached_property
    def _engine(self) -> ModelMetadata:
        return self._client.model_metadata(ENGINE)

    def _check(self) -> None:
        if all(tensor.name != SCORES for tensor in self._engine.outputs):
            raise self._unsupported(
                f"Its {ENGINE} has no {SCORES}, which the CPU engine of this project's "
                "repositories has; NVIDIA's context_logits have a number for every token of the "
                "vocabulary at every position, and this command does not read them"
            )

    def _unsupported(self, why: str) -> UnsupportedError:
        return UnsupportedError(
            "this server does not tell how likely given tokens are, which the task needs",
            where=self._client.url,
            why=why,
            fix="Choose tasks that generate text (generate_until), serve a repository that can, or "
            "measure --model checkpoint",
        )


def _values(answer: Tensors, name: str) -> tuple[bytes | int | float, ...]:
    return answer[name].values if name in answer else ()

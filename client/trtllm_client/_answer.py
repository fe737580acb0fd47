"""The state of one streamed answer, without any input or output of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, TypeVar

from trtllm_client._errors import ServerFailed, error_from_message
from trtllm_client._grpc import Message
from trtllm_client._log_probs import LogProbsSoFar
from trtllm_client._metrics import perf_metrics
from trtllm_client._request import Chunk, Completion
from trtllm_client._traits import TextSoFar
from trtllm_client._wire import Tensors, decode_outputs, decode_tensors

Value = TypeVar("Value")


class StreamState:
    """Turns responses into chunks and knows when the answer is complete.

    Args:
        address: The server's address, for errors.
        expects_data: Whether an end without any data is an error. Triton's ensembles end so when a
            required input is missing.
    """

    def __init__(self, address: str, *, expects_data: bool = True) -> None:
        self.received = 0
        self.complete = False
        self._address = address
        self._expects_data = expects_data
        self._chunks = 0
        self._so_far: TextSoFar | None = None
        self._log_probs = LogProbsSoFar()

    def accumulates(self) -> None:
        """Says that each response holds the whole text so far."""
        self._so_far = TextSoFar()

    def feed(self, response: Message) -> Chunk | None:
        """Returns the chunk in a ``ModelStreamInferResponse``; None when it only marks the end.

        Raises:
            ClientError: The response is an error.
        """
        infer = self._take(response)
        if not infer.outputs:
            held = self._so_far.rest() if self.complete and self._so_far else ""
            return self._count(Chunk(text=held, index=0, is_final=True)) if held else None
        try:
            chunk = _chunk(infer, self.complete)
            if self._so_far:
                chunk = replace(chunk, text=self._so_far.new(chunk.text, final=self.complete))
        except ServerFailed as error:
            error.where = self._address
            raise
        if (scores := chunk.output_log_probs) is not None:
            new = self._log_probs.new(scores, chunk.num_output_tokens, chunk.cum_log_probs)
            chunk = replace(chunk, output_log_probs=new)
        return self._count(chunk)

    def feed_tensors(self, response: Message) -> Tensors | None:
        """Returns the tensors in a ``ModelStreamInferResponse``; None when it only marks the end.

        Raises:
            ClientError: The response is an error.
        """
        infer = self._take(response)
        if not infer.outputs:
            return None
        self._chunks += 1
        try:
            return decode_tensors(infer)
        except ServerFailed as error:
            error.where = self._address
            raise

    def _take(self, response: Message) -> Message:
        """The ``ModelInferResponse`` in it; raises where it is an error, or an end too soon."""
        if response.error_message:
            raise error_from_message(response.error_message, self._address)
        self.received += 1
        infer = response.infer_response
        self.complete = infer.parameters["triton_final_response"].bool_param
        if not infer.outputs and self.complete and self._expects_data and not self._chunks:
            raise ServerFailed(
                "the server ended the request without an answer",
                where=self._address,
                fix="Check that the request has every required input, and the server's log",
            )
        return infer

    def _count(self, chunk: Chunk) -> Chunk:
        self._chunks += 1
        return replace(chunk, index=self._chunks - 1)

    def end(self) -> None:
        """Says that the server closed the stream.

        Raises:
            ServerFailed: It closed before its final response, so text may be missing.
        """
        if not self.complete:
            raise ServerFailed(
                "the server closed the stream before its final response",
                where=self._address,
                why=f"{self.received} responses had arrived",
                fix="The server's log has the cause",
            )


def _chunk(infer: Message, final: bool) -> Chunk:
    outputs = decode_outputs(infer)
    texts = outputs.get("text_output", ())
    if len(texts) > 1:
        raise ServerFailed(
            f"the answer has {len(texts)} texts where one was asked for",
            fix="Ask for one text per request; the server generates many requests together",
        )
    try:
        text = bytes(texts[0]).decode() if texts else ""  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise ServerFailed(
            "the answer's text is not valid UTF-8", why=f"{error.reason} at byte {error.start}"
        ) from error
    log_probs = outputs.get("output_log_probs")
    total = outputs.get("cum_log_probs")
    prompt_tokens = outputs.get("num_input_tokens")
    tokens = outputs.get("num_output_tokens")
    return Chunk(
        text=text,
        index=0,
        is_final=final,
        cum_log_probs=float(total[0]) if total else None,
        output_log_probs=None if log_probs is None else tuple(float(p) for p in log_probs),
        num_input_tokens=int(prompt_tokens[0]) if prompt_tokens else None,
        num_output_tokens=int(tokens[0]) if tokens else None,
        perf_metrics=perf_metrics(outputs),
    )


def collect(chunks: Iterable[Chunk], request_id: str, max_tokens: int | None) -> Completion:
    """Puts the whole answer together from its pieces.

    Args:
        chunks: All pieces, in order.
        request_id: The id the request ran under.
        max_tokens: The limit it ran under, to tell why it ended.
    """
    pieces = list(chunks)
    counts = [c.num_output_tokens for c in pieces if c.num_output_tokens is not None]
    tokens = sum(counts) if counts else None
    log_probs = [chunk.output_log_probs for chunk in pieces if chunk.output_log_probs is not None]
    return Completion(
        text="".join(chunk.text for chunk in pieces),
        request_id=request_id,
        finish_reason=finish_reason(tokens, max_tokens),
        cum_log_probs=_last(chunk.cum_log_probs for chunk in pieces),
        output_log_probs=sum(log_probs, ()) if log_probs else None,
        num_input_tokens=_last(chunk.num_input_tokens for chunk in pieces),
        num_output_tokens=tokens,
        perf_metrics=_last(chunk.perf_metrics for chunk in pieces),
    )


def finish_reason(tokens: int | None, max_tokens: int | None) -> Literal["length", "stop"] | None:
    """Says why a text ended, as :attr:`Completion.finish_reason` does.

    Args:
        tokens: Tokens of the whole text: of a stream, the sum over its chunks. None is not counted.
        max_tokens: The limit it ran under.
    """
    if tokens is None or max_tokens is None:
        return None
    return "length" if tokens >= max_tokens else "stop"


def _last(values: Iterable[Value | None]) -> Value | None:
    known = [value for value in values if value is not None]
    return known[-1] if known else None

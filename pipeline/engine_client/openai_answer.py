"""What a server with OpenAI's API sends, as the client's values and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from trtllm_client import (
    CallRestricted,
    Chunk,
    ClientError,
    Completion,
    DeadlineExceeded,
    GenerateRequest,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)

_DATA, _DONE = "data:", "[DONE]"
_REFUSED = (400, 404, 405, 413, 415, 422, 501)
_RESTRICTED = (401, 403)
_BUSY = (429, 503)
_LATE = 408
REPLACEMENT = "\ufffd"
FinishReason = Literal["stop", "length"]


def error_of(status: int, body: bytes | str, address: str) -> ClientError:
    """Makes the error of an HTTP answer that is none.

    Args:
        status: Its code.
        body: What it holds, ``{"error": {"message": ...}}`` or anything.
        address: The server's, for ``where``.
    """
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    message = _message(text) or f"HTTP status {status}"
    if status in _RESTRICTED:
        return CallRestricted(
            "the server answers only those who send its key",
            where=address,
            fix="Name the environment variable that holds it with --key-from",
        )
    if status == 404:
        return InvalidRequest(
            "there is no OpenAI API at this address",
            where=address,
            why=message,
            fix="Give the address without a path; a Triton server is asked over gRPC, by "
            "HOST:PORT without http://",
        )
    kind: type[ClientError] = ServerFailed
    fix: str | None = "The server's log has the cause"
    if status in _REFUSED:
        kind, fix = InvalidRequest, None
    elif status in _BUSY:
        kind, fix = ServerBusy, "Try again later"
    elif status == _LATE:
        kind, fix = DeadlineExceeded, "Allow more time, or send fewer requests at once"
    return kind(f"the server refused: {message}", where=address, fix=fix)


def _message(text: str) -> str:
    try:
        content = json.loads(text)
    except ValueError:
        return ""
    error = content.get("error") if isinstance(content, dict) else None
    if isinstance(error, dict):
        return str(error.get("message", ""))
    return str(error or "")


class Lines:
    """Cuts the bytes of a stream into lines; httpx2's own way takes longer than the server does."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, content: bytes) -> list[str]:
        """Returns the lines that are complete with these bytes; empty ones are left out.

        Args:
            content: What came; the end of the last line may be missing.
        """
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines if line.strip()]


def event_of(line: str, address: str) -> dict[str, Any] | None:
    """Reads a line of a stream; None for one that says nothing, such as the last.

    Raises:
        ClientError: The line is an error, or no JSON.
    """
    if line.startswith("error:"):
        raise error_of(500, line.removeprefix("error:"), address)
    if not line.startswith(_DATA):
        return None
    text = line.removeprefix(_DATA).strip()
    if text == _DONE:
        return None
    content = object_of(text, address)
    if "error" in content:
        error = content["error"]
        code = error.get("code") if isinstance(error, dict) else None
        raise error_of(code if isinstance(code, int) else 500, text, address)
    return content


def object_of(text: str | bytes, address: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ServerFailed: It is something else.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ServerFailed("the answer is not JSON", where=address, why=str(error)) from error
    if not isinstance(content, dict):
        raise ServerFailed("the answer is no JSON object", where=address)
    return content


class Answer:
    """The state of one answer.

    Args:
        address: The server's address, for errors.
        counts: Whether tokens are counted in the chunks.
        scores: Whether log probabilities were asked for.
        whole: Whether it comes in one piece.
    """

    def __init__(self, address: str, *, counts: bool, scores: bool, whole: bool) -> None:
        self._address, self._counts, self._scores = address, counts, scores
        self._whole = whole
        self._tokens = self._chunks = 0
        self._total = 0.0
        self.finish_reason: FinishReason | None = None

    @classmethod
    def of(cls, request: GenerateRequest, address: str, *, whole: bool) -> Answer:
        """Begins the answer to a request."""
        counts, scores = request.return_num_tokens, request.return_log_probs
        return cls(address, counts=counts, scores=scores, whole=whole)

    def feed(self, event: Mapping[str, Any]) -> Chunk:
        """Makes the chunk of a piece of the answer, or of the whole of it.

        Raises:
            ServerFailed: It has another form.
        """
        try:
            return self._chunk(event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerFailed(
                "the answer has another form than OpenAI's completions",
                where=self._address,
                why=f"{type(error).__name__}: {error}",
            ) from error

    def _chunk(self, event: Mapping[str, Any]) -> Chunk:
        choices = event.get("choices") or ()
        text, scores = "", None
        if choices:
            choice = choices[0]
            text = choice["text"]
            if reason := choice.get("finish_reason"):
                self.finish_reason = "length" if reason == "length" else "stop"
            if self._scores:
                scores = _scores(choice.get("logprobs"))
                self._total += sum(scores)
        usage = event.get("usage") or {}
        so_far = usage.get("completion_tokens", (event.get("timings") or {}).get("predicted_n"))
        new = None
        if self._counts and so_far is not None:
            new, self._tokens = max(int(so_far) - self._tokens, 0), int(so_far)
        if self._whole and self.finish_reason == "length":
            # The bytes of a character that max_tokens cut; a stream does not send them.
            text = text.removesuffix(REPLACEMENT)
        self._chunks += 1
        return Chunk(
            text=str(text),
            index=self._chunks - 1,
            is_final=self.finish_reason is not None,
            cum_log_probs=self._total if self._scores else None,
            output_log_probs=scores,
            num_input_tokens=int(usage["prompt_tokens"]) if self._counts and usage else None,
            num_output_tokens=new,
            finish_reason=self.finish_reason,
        )

    def end(self) -> None:
        """Says that nothing more comes.

        Raises:
            ServerFailed: The answer had not ended.
        """
        if self.finish_reason is None:
            raise ServerFailed(
                "the server closed the stream before its final response",
                where=self._address,
                why=f"{self._chunks} responses had arrived",
                fix="The server's log has the cause",
            )


def _scores(logprobs: Any) -> tuple[float, ...]:
    """Log probabilities of the tokens that a piece has; llama.cpp lists them under ``content``.

    A token that completes no character has none there (send_partial_response in llama.cpp's
    tools/server is skipped for it).
    """
    if not logprobs:
        return ()
    if "content" in logprobs:
        return tuple(float(token["logprob"]) for token in logprobs["content"])
    return tuple(float(score) for score in logprobs["token_logprobs"])


def completion_of(chunks: list[Chunk], request_id: str) -> Completion:
    """Puts an answer together from its pieces.

    Args:
        chunks: All pieces, in order.
        request_id: The client's name of the request.
    """
    counts = [c.num_output_tokens for c in chunks if c.num_output_tokens is not None]
    lists = [c.output_log_probs for c in chunks if c.output_log_probs is not None]
    prompts = [c.num_input_tokens for c in chunks if c.num_input_tokens is not None]
    reasons = [c.finish_reason for c in chunks if c.finish_reason is not None]
    totals = [c.cum_log_probs for c in chunks if c.cum_log_probs is not None]
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        request_id=request_id,
        finish_reason=reasons[-1] if reasons else None,
        cum_log_probs=totals[-1] if totals else None,
        output_log_probs=sum(lists, ()) if lists else None,
        num_input_tokens=prompts[-1] if prompts else None,
        num_output_tokens=sum(counts) if counts else None,
    )

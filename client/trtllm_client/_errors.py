"""What can go wrong between this client and a Triton server.

* ClientError         what went wrong, where, why, and what to do about it
  + InvalidRequest    the request is wrong; found here or by the server
    - CallRestricted  the server keeps the call to those who send a header
  + ConnectionFailed  nothing answers at the address, or the connection broke
  + DeadlineExceeded  no answer, or no further answer, in time
  + ServerBusy        the server's queue is full
  + ServerFailed      the server answered with an error of its own
  + Cancelled         the request was cancelled, here or by the server

Triton sends the errors of a streamed request as plain text without a status code. The header
``triton_grpc_error`` would add the code, but servers of the 24.10 line crash on it under load, so
the text is read instead.
"""

# ruff: noqa: N818 -- named for what happened, as gRPC names its statuses

from __future__ import annotations

import re


class ClientError(Exception):
    """Every error of this package; its text is one paragraph.

    Args:
        what: What went wrong, as a sentence without its full stop.
        where: The server's address, or the file it concerns.
        why: The cause, when it is known.
        fix: What to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        sentences = (f"{place}{self.what}", _capitalized(self.why or ""), self.fix)
        return " ".join(_sentence(text) for text in sentences if text)


def _capitalized(text: str) -> str:
    # Names and paths stay as they are; only plain words begin a sentence.
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


class InvalidRequest(ClientError):
    """The request is wrong; found here or by the server."""


class CallRestricted(InvalidRequest):
    """The server keeps the call to those who send a header of its own."""


class ConnectionFailed(ClientError):
    """Nothing answers at the address, or the connection broke."""


class DeadlineExceeded(ClientError):
    """No answer, or no further answer, in time."""


class ServerBusy(ClientError):
    """The server's queue is full; the same request may work later."""


class ServerFailed(ClientError):
    """The server answered with an error of its own."""


class Cancelled(ClientError):
    """The request was cancelled, here or by the server."""


_WRAPPING = re.compile(
    r"^(?:\[request id: [^\]]*\]\s*"
    r"|in ensemble '[^']*',\s*"
    r"|Model \S+ - Error when running inference:\s*"
    r"|Failed to process the request\(s\) for model (?:instance )?'[^']*', message:\s*"
    r"|(?:\w+\.)*TritonModelException:\s*"
    r"|Executor failed process requestId \d+ due to the following error:\s*"
    r"|Encountered an error when fetching new request:\s*"
    r"|\[TensorRT-LLM\]\[ERROR\]\s*)+"
)
# TensorRT-LLM's exceptions end with the place in its source and the frames of its stack.
_STACK = re.compile(r"(?:\s*\([^()\s]+:\d+\))?\s*\n\s*1\s+0x[0-9a-f]+\b.*", re.DOTALL)
_PEER = re.compile(r"^(?:[A-Z_]+: )?(?:ipv[46]|unix|dns):\S+: ")
# Triton's answer to a call of a restricted protocol (src/grpc/infer_handler.h), with UNAVAILABLE.
_RESTRICTED = re.compile(r"protocol is restricted, expecting header '(?P<name>[^']*)'")
_CODE = re.compile(r"^\[(?P<code>[A-Z_]+)\]\s*")

# Inputs of earlier releases of NVIDIA's repository, by their name today. Triton itself refuses
# what a model does not declare, so no model can say it.
_RENAMED = {
    "random_seed": "seed",
    "min_length": "min_tokens",
    "output_log_probs": "return_log_probs",
}
_UNEXPECTED_INPUT = re.compile(r"unexpected inference input '(?P<name>[^']*)'")

_TEXT_RULES: tuple[tuple[type[ClientError], re.Pattern[str]], ...] = (
    # Texts that name an input and may repeat what the client wrote, whatever its words.
    (
        InvalidRequest,
        re.compile(
            r"^(?:guided_decoding_guide|return_prompt_log_probs|invalid parameter |text_input"
            r"|stop_words|bad_words|embedding_bias_words|unexpected inference (?:input|output) )"
        ),
    ),
    # What follows is about the server's own call of the engine, whatever words it uses; or about
    # one request that has taken all the others with it (executorImpl.cpp, terminateActiveRequests).
    (
        ServerFailed,
        re.compile(
            r"^(?:Error encountered while populating response|Encountered an error in forward"
            r"|the request failed: |the engine stopped working|the guide cannot be tried"
            r"|for this request the engine computes no numbers)"
            r"|\bCUDA (?:runtime|driver|error)\b|\bCUDA_ERROR|\bout of memory\b"
        ),
    ),
    (
        ServerBusy,
        re.compile(r"maximum queue size|queue (?:is )?full|max_queue_size|try again later", re.I),
    ),
    (DeadlineExceeded, re.compile(r"request timeout expired", re.I)),
    (Cancelled, re.compile(r"\bcancell?ed\b", re.I)),
    (ServerFailed, re.compile(r"is not healthy|server exiting|no available versions", re.I)),
    (
        InvalidRequest,
        re.compile(
            r"expected (?:number of inputs|\d+ (?:inputs|string elements))|missing required input"
            r"|unexpected (?:inference (?:input|output)|shape)|data-type is|unknown model"
            r"|batch-size must be|does not match other inputs|byte size mismatch"
            r"|incomplete string data|only supported if|not supported|unsupported"
            r"|not implemented by|does not support|cannot (?:do|be)\b|\bneeds?\b"
            r"|\bat (?:most|least)\b"
            r"|\bmust (?:be|not|hold|have|rise)\b|\binvalid\b|\bis empty\b|\bexceeds?\b"
            r"|\btoo long\b|not (?:valid )?utf-?8|model's ids are|is above|\bhas no\b"
            r"|not found in cache"
            # Of this project's models.
            r"|the input \S+ is missing|which only the tokenizer knows|of the longest prompt"
            r"|answers once per request|but input_ids has|no token of this model can follow"
            r"|the engine refused the request|\bleave it out\b",
            re.I,
        ),
    ),
    # The checks of TensorRT-LLM that have no sentence, or one with none of the words above:
    # executor/samplingConfig.cpp and requestImpl.h, batch_manager/llmRequest.cpp, and utils.cc of
    # its backend for Triton.
    (
        InvalidRequest,
        re.compile(
            r"Assertion failed: (?:!mInputTokenIds\.empty\(\)|mMaxNewTokens > 0|beamWidth (?:>|==)"
            r"|(?:topK|topP|topPMin|topPResetIds|topPDecay|temperature|minTokens|minP|penalty"
            r"|repetition[pP]enalty|lengthPenalty|earlyStopping|noRepeatNgramSize"
            r"|beamSearchDiversityRate|numReturnSequences)\.value\(\) [<>]"
            r"|bias\.value\(\)\.getShape)"
            r"|Incorrect sampling config|is not within acceptable range"
            r"|Repetition penalty should be|Sparse list must|GuidedDecoder is not setup"
            r"|Guided decoding does not|gather_(?:context|generation)_logits"
            r"|Cannot set the request lookahead|Invalid size for tensor"
            r"|is not present in the request|tensor not provided|request ID is not provided"
            r"|decoupled transaction policy|potentially greater than max input length"
        ),
    ),
)

_CODES: dict[str, type[ClientError]] = {
    "INVALID_ARG": InvalidRequest,
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": InvalidRequest,
    "UNIMPLEMENTED": InvalidRequest,
    "UNSUPPORTED": InvalidRequest,
    "ALREADY_EXISTS": InvalidRequest,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "RESOURCE_EXHAUSTED": ServerBusy,
    "INTERNAL": ServerFailed,
    "UNKNOWN": ServerFailed,
}


def error_from_message(text: str, address: str) -> ClientError:
    """Makes the error for the ``error_message`` of a streamed response.

    Args:
        text: What the server sent.
        address: The server's address, for ``where``.
    """
    message = _plain(text)
    code = _CODE.match(message)
    if code:
        message = message[code.end() :]
    kind = _CODES.get(code["code"]) if code else None
    return _refusal(kind or _kind_of_text(message) or ServerFailed, message, address)


def _plain(text: str) -> str:
    return _WRAPPING.sub("", _STACK.sub("", text.strip()))


def _kind_of_text(message: str) -> type[ClientError] | None:
    return next((kind for kind, pattern in _TEXT_RULES if pattern.search(message)), None)


# What gRPC says of a deadline that passes while the call is being set up.
_LATE = ("INTERNAL", "Internal error from Core")


def _refusal(kind: type[ClientError], message: str, address: str) -> ClientError:
    fixes = {
        ServerBusy: "Try again later, or raise serve.max_queue_size in the recipe",
        DeadlineExceeded: "Allow more time, or send fewer requests at once",
        ServerFailed: "The server's log has the cause",
    }
    fix = fixes.get(kind)
    old = _UNEXPECTED_INPUT.search(message)
    if old and old["name"] in _RENAMED:
        fix = f"This input's name is {_RENAMED[old['name']]} now"
    return kind(f"the server refused: {message}", where=address, fix=fix)


def error_from_status(
    code: str, details: str, address: str, *, answered: int = 0, late: bool = False
) -> ClientError:
    """Makes the error for a gRPC call that ended with a status other than OK.

    Args:
        code: Name of the status, such as ``UNAVAILABLE``.
        details: The status's text.
        address: The server's address, for ``where``.
        answered: Responses that had arrived before the call ended.
        late: Whether the call's deadline has passed.
    """
    if late and (code, details) == _LATE:
        code = "DEADLINE_EXCEEDED"
    if restricted := _RESTRICTED.search(details):
        return CallRestricted(
            "the server keeps this call to those who send a header",
            where=address,
            why=f"it was started with --grpc-restricted-protocol and expects {restricted['name']}",
            fix="Give the header with its value (headers), or let the server allow the call",
        )
    if code == "UNAVAILABLE":
        # Triton says so for a full queue and a timeout in the queue as well.
        kind = _kind_of_text(details)
        if kind in (ServerBusy, ServerFailed, DeadlineExceeded):
            return _refusal(kind, details, address)
        return _unreachable(details, address, answered)
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return InvalidRequest("the message is too large", where=address, why=details)
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(
            "the request was not finished in time" if answered else "no answer in time",
            where=address,
            why=f"{answered} responses had arrived" if answered else None,
            fix="Allow more time (timeout), or ask for fewer tokens",
        )
    if code == "CANCELLED":
        return Cancelled("the request was cancelled", where=address)
    if code == "UNIMPLEMENTED":
        return InvalidRequest(
            "the server does not offer this call",
            where=address,
            why=details or None,
            fix="Check that this is a Triton server's gRPC port and that the model is decoupled",
        )
    message = _plain(details)
    kind = _CODES.get(code, ServerFailed)
    if code == "INTERNAL":
        # TensorRT-LLM's backend has no other code for a request that it refuses, and Triton loses
        # that of an error on its way from one model to another.
        kind = _kind_of_text(message) or ServerFailed
    return _refusal(kind, message or code, address)


def client_closed(address: str) -> InvalidRequest:
    """Makes the error for a call after ``close``."""
    return InvalidRequest("this client was closed", where=address, fix="Make a new one")


def _unreachable(details: str, address: str, answered: int) -> ConnectionFailed:
    # gRPC's text repeats each address with the same cause; the last clause is the cause itself.
    cause = details.rsplit("last error: ", 1)[-1].rsplit("; ", 1)[-1].strip()
    cause = _PEER.sub("", cause) or "The connection was closed"
    if answered:
        return ConnectionFailed(
            f"the connection broke after {answered} responses",
            where=address,
            why=cause,
            fix="The server's log says why it closed the connection",
        )
    return ConnectionFailed(
        "no Triton server answers here",
        where=address,
        why=cause,
        fix="Start one with 'trtllm-pipeline serve', and give its gRPC address (port 8001 by "
        "default; 8000 is HTTP) and the TLS options it was started with",
    )


def went_silent(address: str, limit: float | None, received: int) -> DeadlineExceeded:
    """Makes the error for a server that stopped answering.

    Args:
        address: The server's address, for ``where``.
        limit: The seconds that were waited.
        received: Responses that had arrived before.
    """
    return DeadlineExceeded(
        f"the server went silent for {limit or 0:g} s",
        where=address,
        why=f"{received} responses had arrived; a model process that died never answers",
        fix="Look into the server's log, or raise stall_timeout",
    )

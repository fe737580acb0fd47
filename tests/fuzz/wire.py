"""Puts a case on the wire, with tritonclient's protobuf and sockets, and waits for the end."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.fuzz.case import Case, Field, Value

PATIENCE_S = 60.0
"""Every request here takes less than a second of work; on a busy machine it may wait for others."""

DEEP = 2000
"""Levels of the deepest JSON that is sent. Triton 2.51 itself dies of 300,000 (SECURITY.md)."""

_NUMPY = {
    "BOOL": "?",
    "INT8": "<i1",
    "UINT8": "<u1",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}
_SERVICE = "/inference.GRPCInferenceService"
PLACEHOLDER = "to be broken"


@dataclass
class Outcome:
    """What came of a request.

    Attributes:
        kind: ``answered``, ``refused``, ``cancelled``, ``hung``, ``silent`` for a stream that ended
            well and without a response, or ``broken`` for a connection that ended so.
        status: Name of the gRPC status or number of the HTTP one, where there is one.
        message: The error's text.
        responses: Of an answer: each response's outputs by name, as read from the wire.
    """

    kind: str
    status: str = ""
    message: str = ""
    responses: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Wire:
    """One client, for one thread.

    Args:
        grpc_url: ``host:port``.
        http_port: Of the same server, on loopback.
    """

    def __init__(self, grpc_url: str, http_port: int) -> None:
        self._http_port = http_port
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(
            grpc_url, options=[*unlimited, ("grpc.use_local_subchannel_pool", 1)]
        )
        self._stream = self._channel.stream_stream(
            f"{_SERVICE}/ModelStreamInfer",
            request_serializer=None,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self._unary = self._channel.unary_unary(
            f"{_SERVICE}/ModelInfer",
            request_serializer=None,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def send(self, case: Case) -> Outcome:
        """Sends a request and waits for its end."""
        started = time.monotonic()
        way = {"stream": self._by_stream, "unary": self._by_unary}.get(case.way, self._by_http)
        try:
            outcome = way(case)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                outcome = Outcome("hung")
            else:
                outcome = Outcome("refused", error.code().name, error.details() or "")
        except TimeoutError:
            outcome = Outcome("hung")
        except OSError as error:
            outcome = Outcome("broken", message=str(error))
        outcome.seconds = time.monotonic() - started
        return outcome

    def _by_unary(self, case: Case) -> Outcome:
        response = self._unary(encode(case), timeout=PATIENCE_S)
        return Outcome("answered", responses=[_outputs(response)])

    def _by_stream(self, case: Case) -> Outcome:
        # Without the statuses of errors: under load Triton 2.51 dies of triton_grpc_error.
        call = self._stream(iter((encode(case),)), timeout=PATIENCE_S)
        outcome = Outcome("answered")
        if case.cancel_after == 0:
            call.cancel()
            return Outcome("cancelled")
        for response in call:
            if response.error_message:
                outcome.kind, outcome.message = "refused", response.error_message
            else:
                outcome.responses.append(_outputs(response.infer_response))
            if case.cancel_after and len(outcome.responses) >= case.cancel_after:
                call.cancel()
                return Outcome("cancelled", responses=outcome.responses)
        return _or_silent(outcome)

    def _by_http(self, case: Case) -> Outcome:
        with socket.create_connection(("127.0.0.1", self._http_port), timeout=PATIENCE_S) as sock:
            sock.sendall(http_request(case))
            if {"length_long", "chunked_cut"} & set(case.faults):
                # The server waits for what will not come.
                sock.shutdown(socket.SHUT_WR)
            if case.cancel_after == 0:
                return Outcome("cancelled")
            reader = sock.makefile("rb")
            line = reader.readline().split(b" ", 2)
            if len(line) < 2:
                return Outcome("broken", message="no status line")
            status = int(line[1])
            headers = {}
            while header := reader.readline().strip():
                name, _, value = header.partition(b":")
                headers[name.lower()] = value.strip()
            if case.cancel_after and status == 200:
                reader.readline()
                return Outcome("cancelled")
            body = _read_body(reader, headers)
        return _http_outcome(case, status, headers, body)


def encode(case: Case) -> bytes:
    """The serialized ``ModelInferRequest``."""
    if "garbage" in case.faults:
        return b"\x0a\xff\xff\xff\xff\x0f not a message"
    message = service_pb2.ModelInferRequest(
        model_name="no_such_model" if "no_model" in case.faults else case.model,
        model_version=case.version,
        id=PLACEHOLDER if "id_bytes" in case.faults else case.request_id,
    )
    for name, value in case.parameters:
        _set_parameter(message.parameters[name], value)
    raw = []
    typed = _typed(case)
    for one in case.fields:
        entry = message.inputs.add(
            name=f"{one.name}\0" if "nul_name" in case.faults else one.name,
            datatype=one.datatype,
            shape=[min(size, 2**63 - 1) for size in one.shape],
        )
        if typed:
            getattr(entry.contents, _CONTENTS[one.datatype]).extend(_plain(one))
        else:
            raw.append(raw_bytes(one))
    if "raw_and_contents" in case.faults and message.inputs:
        message.inputs[0].contents.int_contents.append(1)
    _break_raw(raw, case.faults, case.fields)
    message.raw_input_contents.extend(raw)
    for name in case.outputs:
        message.outputs.add(name=name)
    encoded = bytes(message.SerializeToString())
    if "id_bytes" in case.faults:
        encoded = encoded.replace(PLACEHOLDER.encode(), b"\xff\xfe\x80" * 4, 1)
    return encoded


def _typed(case: Case) -> bool:
    """Whether the elements go into the message one by one, as some clients send them."""
    raw = {"raw_short", "raw_long", "raw_missing", "raw_extra", "prefix_huge", "prefix_short"}
    return (
        len(case.fields) % 5 == 2
        and not raw & set(case.faults)
        and "raw_and_contents" not in case.faults
        and all(one.datatype in _CONTENTS for one in case.fields)
    )


def _plain(one: Field) -> list[Value]:
    return list(one.values)


def raw_bytes(one: Field) -> bytes:
    """A tensor's bytes on the wire."""
    if one.datatype in _NUMPY:
        return np.array(one.values, _NUMPY[one.datatype]).tobytes()
    return b"".join(
        struct.pack("<I", len(value)) + value for value in (_bytes(value) for value in one.values)
    )


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _break_raw(raw: list[bytes], faults: Sequence[str], fields: Sequence[Field]) -> None:
    if not raw:
        return
    if "raw_short" in faults:
        raw[0] = raw[0][:-1]
    elif "raw_long" in faults:
        raw[0] += b"\0\0\0\0\0"
    elif "raw_missing" in faults:
        raw.pop()
    elif "raw_extra" in faults:
        raw.append(b"\0\0\0\0")
    elif "prefix_huge" in faults or "prefix_short" in faults:
        # The length in front of a text: more than there is, or less.
        length = b"\xff\xff\xff\xff" if "prefix_huge" in faults else b"\x01\0\0"
        for place, one in enumerate(fields):
            if one.datatype == "BYTES" and raw[place]:
                raw[place] = length + raw[place][4:]
                return
        raw[0] = raw[0] + b"\1"


def _set_parameter(parameter: Any, value: Value | str) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = str(value)


def _outputs(response: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if entry.datatype == "BYTES":
            found[entry.name] = _texts(raw)
        else:
            array = np.frombuffer(raw, _NUMPY[entry.datatype])
            found[entry.name] = array.reshape(list(entry.shape))
    return found


def _texts(raw: bytes) -> list[bytes]:
    texts, place = [], 0
    while place < len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        texts.append(raw[place + 4 : place + 4 + length])
        place += 4 + length
    return texts


def http_request(case: Case) -> bytes:
    """The whole HTTP request."""
    verb = "infer" if case.way.startswith("infer") else case.way
    model = "no_such_model" if "no_model" in case.faults else case.model
    version = f"/versions/{quote(case.version, safe='')}" if case.version else ""
    path = f"/v2/models/{model}{version}/{verb}"
    if "path_unknown" in case.faults:
        path = f"/v2/models/{model}/generate/%00/../../x?{'y' * 500}"
    headers: dict[str, str] = {"Content-Type": "application/json"}
    tail = b""
    if case.way in ("generate", "generate_stream"):
        body = _generate_body(case)
    else:
        body, tail = _infer_body(case, binary=case.way == "infer_binary")
    body = _break_json(body, case.faults)
    if case.way == "infer_binary":
        length = {
            "header_length_huge": str(2**40),
            "header_length_text": "many",
            "header_length_short": "3",
        }
        chosen = next((length[one] for one in case.faults if one in length), str(len(body)))
        headers["Inference-Header-Content-Length"] = chosen
        headers["Content-Type"] = "application/octet-stream"
        body += tail
    if "gzip_wrong" in case.faults:
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body)[:-6]
    if "encoding_unknown" in case.faults:
        headers["Content-Encoding"] = "zip"
    method = "GET" if "method_get" in case.faults else "POST"
    method = "PUT" if "method_put" in case.faults else method
    if {"chunked", "chunked_cut"} & set(case.faults):
        headers["Transfer-Encoding"] = "chunked"
        half = len(body) // 2 or 1
        parts = [body[:half], body[half:]]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
        body += b"" if "chunked_cut" in case.faults else b"0\r\n\r\n"
    else:
        change = -1 if "length_short" in case.faults else 50 if "length_long" in case.faults else 0
        headers["Content-Length"] = str(max(0, len(body) + change))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{head}\r\n".encode()
        + body
    )


def _generate_body(case: Case) -> bytes:
    members = []
    for name, value in (("id", case.request_id), *case.parameters):
        if name != "id" or value:
            members.append(json.dumps(name).encode() + b": " + _json(value))
    for one in case.fields:
        many = len(one.values) != 1 or one.name.endswith("_words")
        parts = b", ".join(map(_json, one.values))
        members.append(json.dumps(one.name).encode() + b": " + (b"[%s]" % parts if many else parts))
    return b"{" + b", ".join(members) + b"}"


def _infer_body(case: Case, *, binary: bool) -> tuple[bytes, bytes]:
    inputs, tail = [], b""
    for one in case.fields:
        shape = json.dumps(list(one.shape)).encode()
        head = b'{"name": %s, "shape": %s, "datatype": %s, ' % (
            json.dumps(one.name).encode(),
            shape,
            json.dumps(one.datatype).encode(),
        )
        if binary:
            raw = raw_bytes(one)
            size: Any = len(raw)
            size = 2**40 if "binary_size_huge" in case.faults else size
            size = "many" if "binary_size_text" in case.faults else size
            inputs.append(
                head + b'"parameters": {"binary_data_size": %s}}' % json.dumps(size).encode()
            )
            tail += raw
        else:
            inputs.append(head + b'"data": [%s]}' % b", ".join(map(_json, one.values)))
    members = [b'"inputs": [%s]' % b", ".join(inputs)]
    if case.request_id:
        members.append(b'"id": ' + _json(case.request_id))
    if case.parameters:
        pairs = [
            json.dumps(name).encode() + b": " + _json(value) for name, value in case.parameters
        ]
        members.append(b'"parameters": {%s}' % b", ".join(pairs))
    if case.outputs:
        named = [b'{"name": %s}' % json.dumps(name).encode() for name in case.outputs]
        members.append(b'"outputs": [%s]' % b", ".join(named))
    return b"{" + b", ".join(members) + b"}", tail


def _json(value: Value | str) -> bytes:
    if not isinstance(value, bytes):
        return json.dumps(value).encode()
    try:
        return json.dumps(value.decode(), ensure_ascii=False).encode()
    except UnicodeDecodeError:
        # As it is: no JSON library writes such a text, but who writes JSON by hand does.
        return b'"%s"' % value


def _break_json(body: bytes, faults: Sequence[str]) -> bytes:
    broken = {
        "json_cut": body[: len(body) * 2 // 3],
        "json_comma": body[:-1] + b",}",
        "json_garbage": body + b" and more",
        "json_empty": b"",
        "json_array": b"[%s]" % body,
        "json_deep": b'{"text_input": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        "json_duplicate": body[:1] + b'"id": "one", "id": "two", ' + body[1:],
        "json_surrogate": body[:1] + b'"\\ud800": 1, ' + body[1:],
    }
    return next((broken[one] for one in faults if one in broken), body)


def _read_body(reader: Any, headers: dict[bytes, bytes]) -> bytes:
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        parts = []
        while size := int(reader.readline().strip() or b"0", 16):
            parts.append(reader.read(size))
            reader.readline()
        return b"".join(parts)
    if b"content-length" in headers:
        return bytes(reader.read(int(headers[b"content-length"])))
    return bytes(reader.read())


def _http_outcome(case: Case, status: int, headers: dict[bytes, bytes], body: bytes) -> Outcome:
    code = str(status)
    if status != 200:
        return Outcome("refused", code, _error_of(body))
    if case.way == "generate_stream":
        events = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
        answers = [json.loads(event) for event in events]
        wrong = [answer["error"] for answer in answers if set(answer) == {"error"}]
        if wrong:
            return Outcome("refused", "", wrong[0])
        return _or_silent(Outcome("answered", code, responses=answers))
    if case.way == "generate":
        answer = json.loads(body)
        if set(answer) == {"error"}:
            return Outcome("refused", "", answer["error"])
        return Outcome("answered", code, responses=[answer])
    length = headers.get(b"inference-header-content-length")
    answer = json.loads(body[: int(length)] if length else body)
    found = {entry["name"]: entry.get("data") for entry in answer["outputs"]}
    return Outcome("answered", code, responses=[found])


def _or_silent(outcome: Outcome) -> Outcome:
    if outcome.kind == "answered" and not outcome.responses:
        outcome.kind = "silent"
    return outcome


def _error_of(body: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"])
    return body.decode("utf-8", "replace")


def is_finite(value: float) -> bool:
    """Whether JSON can say a number."""
    return math.isfinite(value)

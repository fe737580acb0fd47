"""One request, in a form that can be sent over gRPC and HTTP, written down and made smaller."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

Value = int | float | bool | bytes

LONGEST_PERIOD = 64


@dataclass(frozen=True)
class Field:
    """One input tensor as it is sent, whether it fits the model or not.

    Attributes:
        shape: Of the whole tensor, the batch in front; need not agree with ``values``.
        values: Row by row.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        way: ``stream`` and ``unary`` (gRPC), ``generate``, ``generate_stream``, ``infer`` and
            ``infer_binary`` (HTTP).
        parameters: Request parameters by name.
        outputs: Outputs asked for; none asks for all.
        faults: What is broken while the request is put on the wire, by name (wire.py).
        cancel_after: Responses after which the client gives up; None for never.
    """

    model: str
    way: str
    fields: tuple[Field, ...]
    parameters: tuple[tuple[str, Value | str], ...] = ()
    outputs: tuple[str, ...] = ()
    request_id: str = ""
    version: str = ""
    faults: tuple[str, ...] = ()
    cancel_after: int | None = None

    def field(self, name: str) -> Field | None:
        """The first input of that name."""
        return next((field for field in self.fields if field.name == name), None)

    def but(self, **changes: Any) -> Case:
        """The request with something else in it."""
        return dataclasses.replace(self, **changes)


def to_json(case: Case) -> str:
    """Writes a case on one line; texts that repeat themselves take little room."""
    return json.dumps(_plain(dataclasses.asdict(case)), ensure_ascii=True)


def from_json(text: str) -> Case:
    """Reads what :func:`to_json` wrote."""
    read = _value(json.loads(text))
    fields = tuple(
        Field(f["name"], f["datatype"], tuple(f["shape"]), tuple(f["values"]))
        for f in read["fields"]
    )
    return Case(
        **{
            **read,
            "fields": fields,
            "parameters": tuple((name, value) for name, value in read["parameters"]),
            "outputs": tuple(read["outputs"]),
            "faults": tuple(read["faults"]),
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        if len(value) > LONGEST_PERIOD and len(set(value)) == 1:
            return {"each": _plain(value[0]), "times": len(value)}
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, bytes):
        unit = _unit(value)
        return {"bytes": base64.b64encode(unit).decode(), "times": len(value) // max(1, len(unit))}
    return value


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "bytes" in value:
        return base64.b64decode(value["bytes"]) * value["times"]
    if "each" in value:
        return [_value(value["each"])] * value["times"]
    return {key: _value(one) for key, one in value.items()}


def _unit(value: bytes) -> bytes:
    """The shortest bytes that give ``value`` when repeated."""
    for period in range(1, min(LONGEST_PERIOD, len(value) // 2) + 1):
        if len(value) % period == 0 and value == value[:period] * (len(value) // period):
            return value[:period]
    return value

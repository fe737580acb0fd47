"""Makes a finding's request as small as it can be and still be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.fuzz.case import Case, Field

MOST_TRIES = 60


def shrink(case: Case, holds: Callable[[Case], bool]) -> Case:
    """Leaves out one part after the other.

    Args:
        holds: Whether a request shows the same as ``case`` does.
    """
    tries = 0
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(case):
            if tries == MOST_TRIES:
                return case
            tries += 1
            if holds(candidate):
                case, smaller = candidate, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    for place in range(len(case.fields)):
        yield case.but(fields=case.fields[:place] + case.fields[place + 1 :])
    for place in range(len(case.parameters)):
        yield case.but(parameters=case.parameters[:place] + case.parameters[place + 1 :])
    if case.outputs:
        yield case.but(outputs=())
    if len(case.outputs) > 1:
        yield case.but(outputs=case.outputs[1:])
    if case.request_id:
        yield case.but(request_id="")
    if case.version:
        yield case.but(version="")
    for place in range(len(case.faults)):
        yield case.but(faults=case.faults[:place] + case.faults[place + 1 :])
    yield from _one_row(case)
    for place, one in enumerate(case.fields):
        if one.datatype == "BYTES" and any(isinstance(v, bytes) and len(v) > 8 for v in one.values):
            short = tuple(v[: len(v) // 2] if isinstance(v, bytes) else v for v in one.values)
            new = Field(one.name, one.datatype, one.shape, short)
            yield case.but(fields=(*case.fields[:place], new, *case.fields[place + 1 :]))


def _one_row(case: Case) -> Iterator[Case]:
    if not case.fields or not all(one.shape and one.shape[0] > 1 for one in case.fields):
        return
    for row in (0, case.fields[0].shape[0] - 1):
        fields = []
        for one in case.fields:
            width = len(one.values) // one.shape[0]
            kept = one.values[row * width : (row + 1) * width]
            fields.append(Field(one.name, one.datatype, (1, *one.shape[1:]), kept))
        yield case.but(fields=tuple(fields))

"""The fuzzer sees what must not be: faults planted in what comes back."""

from __future__ import annotations

import math

import pytest

from tests.fuzz.case import Case, Field, from_json, to_json
from tests.fuzz.judge import find
from tests.fuzz.oracle import Verdict
from tests.fuzz.shrink import shrink
from tests.fuzz.wire import Outcome

CASE = Case(
    "tensorrt_llm_bls",
    "stream",
    (
        Field("text_input", "BYTES", (1, 1), (b"ab" * 5000,)),
        Field("max_tokens", "INT32", (1, 1), (4,)),
        Field("top_p", "FP32", (1, 1), (math.inf,)),
    ),
    parameters=(("priority", 1),),
    faults=("raw_short",),
)
RIGHT, WRONG, OPEN = Verdict(), Verdict(["top_p inf"]), Verdict([], ["undecided"])
TEXT = [{"text_output": [b" a"]}]


@pytest.mark.parametrize(
    ("verdict", "outcome", "kind"),
    [
        (RIGHT, Outcome("answered", responses=TEXT), None),
        (WRONG, Outcome("refused", "INVALID_ARGUMENT", "top_p must be at most 1"), None),
        (OPEN, Outcome("answered", responses=TEXT), None),
        (OPEN, Outcome("refused", "400", "no"), None),
        (RIGHT, Outcome("refused", "UNAVAILABLE", "no room"), "valid, refused"),
        (RIGHT, Outcome("broken"), "valid, connection ended"),
        (RIGHT, Outcome("silent"), "no word"),
        (WRONG, Outcome("silent"), "no word"),
        (RIGHT, Outcome("answered", responses=[{"cum_log_probs": []}]), "malformed answer"),
        (WRONG, Outcome("answered", responses=TEXT), "invalid, answered"),
        (WRONG, Outcome("refused", "500", "top_p"), "a client's fault told as the server's"),
        (WRONG, Outcome("refused", "INTERNAL", "top_p"), "a client's fault told as the server's"),
        (WRONG, Outcome("refused", "500", "Unable to parse 'data': no"), None),
        (WRONG, Outcome("refused", "400", "ValueError: top_p"), "python text"),
        (OPEN, Outcome("refused", "400", 'File "/a/model.py", line 3'), "python text"),
        (OPEN, Outcome("hung"), "hang"),
    ],
)
def test_what_must_not_be_is_found(verdict: Verdict, outcome: Outcome, kind: str | None) -> None:
    found = find(CASE.but(faults=()), verdict, outcome)
    assert (found.kind if found else None) == kind


def test_a_case_is_written_shortly_and_read_as_it_was() -> None:
    text = to_json(CASE)
    assert len(text) < 700
    assert from_json(text) == CASE


def test_a_case_shrinks_to_what_shows_the_same() -> None:
    smallest = shrink(CASE, lambda case: case.field("top_p") is not None)
    assert smallest == Case(
        "tensorrt_llm_bls", "stream", (Field("top_p", "FP32", (1, 1), (math.inf,)),)
    )

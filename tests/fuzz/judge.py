"""Holds what came back against what the request deserved."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.oracle import INVALID, VALID, Verdict
from tests.fuzz.wire import Outcome

PYTHON = re.compile(
    r"Traceback|File \"|\.py\b|<class|object at 0x"
    # "Error encountered while populating response" is upstream's.
    r"|\b[A-Za-z]*(?:Error|Exception)\b(?!\s+encountered)"
)
SERVERS_FAULT = frozenset(("INTERNAL", "UNKNOWN", "DATA_LOSS"))

# A message that cannot be read ends a stream without a word in gRPC's own layer.
UNREADABLE = frozenset(("garbage", "id_bytes"))

# What Triton 2.51 itself says before any model sees the request, with a status of the server's.
TRITONS_OWN = tuple(
    re.compile(text, re.DOTALL)
    for text in (
        # Of what is no JSON, or not of the form that generate and infer want.
        r"^failed to parse the request JSON buffer",
        r"^Unable to parse (?:'|JSON)",
        r"^attempt to get members for non-object$",
        # Of bytes that are no message of its protocol.
        r"^Unable to parse request$",
    )
)


@dataclass(frozen=True)
class Finding:
    """What must not be.

    Attributes:
        kind: Which rule is broken.
        detail: What was seen.
    """

    kind: str
    detail: str


def find(case: Case, verdict: Verdict, outcome: Outcome) -> Finding | None:
    """The first rule that ``outcome`` breaks, or None."""
    said = f"{outcome.status} {outcome.message}"[:400]
    if outcome.kind == "hung":
        return Finding("hang", "no end within the bound")
    if PYTHON.search(outcome.message):
        return Finding("python text", said)
    if outcome.kind == "cancelled":
        return None
    if outcome.kind == "broken":
        if verdict.word == VALID:
            return Finding("valid, connection ended", said)
        return None
    if outcome.kind == "silent":
        stop = case.field("stop")
        if UNREADABLE & set(case.faults) or (stop and any(stop.values)):
            return None
        return Finding("no word", f"the stream ended well, without a response: {verdict.why[:200]}")
    if outcome.kind == "refused":
        if verdict.word == VALID:
            return Finding("valid, refused", said)
        servers = outcome.status in SERVERS_FAULT or outcome.status.startswith("5")
        if servers and outcome.status != "501" and not is_tritons(outcome):
            return Finding("a client's fault told as the server's", said)
        return None
    if verdict.word == INVALID:
        return Finding("invalid, answered", verdict.why[:400])
    if verdict.word == VALID and (problem := malformed(case, outcome)):
        return Finding("malformed answer", problem)
    return None


def is_tritons(outcome: Outcome) -> bool:
    """Whether an error is Triton's own, told before any model sees the request."""
    return any(text.search(outcome.message) for text in TRITONS_OWN)


def malformed(case: Case, outcome: Outcome) -> str | None:
    """What is wrong with the answer to a right request."""
    asked = set(case.outputs)
    if case.model == "postprocessing" or (case.field("stop") and case.field("stop").values[0]):  # type: ignore[union-attr]
        return None
    must = {
        "tensorrt_llm": "output_ids",
        "preprocessing": "INPUT_ID",
    }.get(case.model, "text_output")
    if asked and must not in asked:
        return None
    answers = [response for response in outcome.responses if must in response]
    if not answers:
        return f"no {must} in {len(outcome.responses)} responses"
    if case.model == "tensorrt_llm" and case.way == "stream":
        return _tokens(case, answers)
    if must == "text_output" and case.way == "stream":
        for answer in answers:
            for text in answer[must]:
                try:
                    text.decode()
                except UnicodeDecodeError:
                    return "a text that is no UTF-8"
    return None


def _tokens(case: Case, answers: list[dict[str, Any]]) -> str | None:
    most = case.field("request_output_len")
    ids, echo = case.field("input_ids"), case.field("exclude_input_in_output")
    assert most is not None
    assert ids is not None
    rows = most.shape[0]
    if rows > 1 and any("batch_index" not in answer for answer in answers):
        return None if case.outputs else "no batch_index for a batch"
    counts = [0] * rows
    for answer in answers:
        row = int(np.ravel(answer["batch_index"])[0]) if rows > 1 and "batch_index" in answer else 0
        count = int(np.ravel(answer["sequence_length"])[0])
        if count != answer["output_ids"].shape[-1]:
            return "sequence_length is not that of output_ids"
        counts[row] += count
    for row, count in enumerate(counts):
        prompt = ids.shape[1] if echo is not None and not echo.values[row] else 0
        if count > int(most.values[row]) + prompt:
            return f"{count} tokens where {most.values[row]} were asked for"
    return None

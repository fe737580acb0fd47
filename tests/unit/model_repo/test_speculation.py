"""The rounds of draft-target speculation, with both engines played by a fixed text.

The engine here is upstream's rule written out: of the guesses it returns those that its text has,
and one token more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.model_repo.fake_triton import HANDLERS, InferenceRequest, InferenceResponse
from tests.unit.model_repo.test_bls import STREAM, answer, ids, opened, request, texts

TEXT = "Hello there, the sun is up and the sea is calm."
TOKENS = ids(TEXT)
PROMPT = "Hi"


class Fixed:
    """An engine whose text after the prompt is ``TEXT``.

    Args:
        wrong: Of a draft, how often a guess is another token; 0 is never.
        takes: Guesses that it looks at; what is more is discarded, as upstream's chunks do.
    """

    def __init__(self, wrong: int = 0, takes: int = 99) -> None:
        self.wrong, self.takes = wrong, takes
        self.calls: list[InferenceRequest] = []

    def __call__(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        if "stop" in request.inputs:
            return
        self.calls.append(request)
        start = request.inputs["input_ids"].size - len(ids(PROMPT))
        length = int(request.inputs["request_output_len"].item())
        rest = TOKENS[start : start + length]
        guesses = request.inputs.get("draft_input_ids", np.array([])).reshape(-1).tolist()
        guesses = guesses[: self.takes]
        if guesses:
            same = 0
            while same < min(len(guesses), len(rest)) and guesses[same] == rest[same]:
                same += 1
            rest = rest[: same + 1]
        if self.wrong:
            rest = [t + 1 if (start + i) % self.wrong == 0 else t for i, t in enumerate(rest)]
            # Held back from ending the text by min_tokens, as the draft is.
            rest += [5] * (length - len(rest))
        yield answer(rest)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("wrong", [1, 2, 3, 1000])
@pytest.mark.parametrize("takes", [1, 3, 99])
def test_the_text_is_the_engines_own(tmp_path: Path, count: int, wrong: int, takes: int) -> None:
    """Also where the engine discards guesses, which upstream's loop may take for the end."""
    got, engine = run(tmp_path, Fixed(takes=takes), Fixed(wrong), count=count, length=100)
    assert got == TEXT
    for call in engine.calls:
        guesses = call.inputs.get("draft_input_ids", np.empty((1, 0)))
        assert guesses.size <= count
        assert call.inputs["request_output_len"].item() == guesses.size + 1


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_no_more_than_was_asked_for(tmp_path: Path, length: int) -> None:
    got, engine = run(tmp_path, Fixed(), Fixed(), count=4, length=length)
    assert ids(got) == TOKENS[:length]
    # Four guesses and one token a call.
    assert len(engine.calls) == -(-length // 5)


def test_each_round_of_a_stream_is_a_response(tmp_path: Path) -> None:
    with opened(tmp_path, **PARAMETERS) as model:
        HANDLERS["tensorrt_llm"], HANDLERS["tensorrt_llm_draft"] = Fixed(), Fixed()
        sent = request(PROMPT, **STREAM, **asked(4, 10))
        model.execute([sent])
        pieces = texts(sent)
    assert len([piece for piece in pieces if piece]) == 2
    assert ids("".join(pieces)) == TOKENS[:10]


PARAMETERS = {"tensorrt_llm_draft_model_name": "tensorrt_llm_draft", "max_draft_len": "7"}


def asked(count: int, length: int) -> dict[str, Any]:
    return {
        "num_draft_tokens": np.array([[count]], np.int32),
        "max_tokens": np.array([[length]], np.int32),
    }


def run(folder: Path, engine: Fixed, draft: Fixed, *, count: int, length: int) -> tuple[str, Fixed]:
    """The text of a request, and the engine with its calls."""
    with opened(folder, **PARAMETERS) as model:
        HANDLERS["tensorrt_llm"], HANDLERS["tensorrt_llm_draft"] = engine, draft
        sent = request(PROMPT, **asked(count, length))
        model.execute([sent])
        (text,) = texts(sent)
    return text, engine

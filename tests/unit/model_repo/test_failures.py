"""What a client reads when a request breaks a model: words and a number, which the log has too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.postprocessing.model import TritonPythonModel as Postprocessing
from model_repo.preprocessing.model import TritonPythonModel as Preprocessing
from tests.unit.model_repo import test_bls as bls
from tests.unit.model_repo.fake_triton import HANDLERS, Logger, Request, TritonError
from tests.unit.model_repo.fake_triton import model_args as args_of
from tests.unit.model_repo.test_detokenizer import TOKENIZERS
from tests.unit.model_repo.test_text_models import OUTPUTS, inputs

TOLD = re.compile(
    r"the request failed inside the server, whose log has the reason \(failure ([0-9a-f]{12})\)"
)
BYTES = b'{"a\xff": 1}'


class Undecodable(Request):
    """What pybind11 does where Triton's C++ text is no UTF-8."""

    broken = "parameters"

    def parameters(self) -> str:
        return BYTES.decode() if self.broken == "parameters" else super().parameters()

    def request_id(self) -> str:
        return BYTES.decode() if self.broken == "request_id" else super().request_id()


class NamelessRequest(Undecodable):
    broken = "request_id"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    TOKENIZERS["byte_fallback"].save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(Logger, "messages", messages)
    return messages


def opened(kind: Any, repository: Path) -> Any:
    model = kind()
    model.initialize(args_of(repository, {"tokenizer_dir": "tokenizer"}))
    return model


@pytest.fixture
def text_model(tmp_path: Path) -> Iterator[Any]:
    with bls.opened(tmp_path) as made:
        yield made


def check_told(message: str, log: list[str], cause: str) -> None:
    """The client has the number and nothing of Python; the log has the number and everything."""
    found = TOLD.fullmatch(message)
    assert found, message
    (line,) = [line for line in log if found[1] in line]
    assert "Traceback (most recent call last)" in line
    assert cause in line


def test_parameters_that_are_no_text_are_refused_by_name(repository: Path, log: list[str]) -> None:
    (response,) = opened(Preprocessing, repository).execute([Undecodable(inputs(), OUTPUTS)])
    assert response.error().message() == (
        "invalid parameters: the name or the value of one is not valid UTF-8"
    )
    assert response.error().code() == TritonError.INVALID_ARG
    assert log == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Undecodable, "invalid parameters: the name or the value of one is not valid UTF-8"),
        (NamelessRequest, "invalid request id: it is not valid UTF-8"),
    ],
)
def test_the_text_model_refuses_them_too(
    text_model: Any, kind: type[Request], message: str, log: list[str]
) -> None:
    engine = bls.use(bls.Engine("fine"))
    tensors = {
        "text_input": np.array([[b"Hi"]], object),
        "max_tokens": np.array([[100]], np.int32),
    }
    sent = kind(tensors, ["text_output"], "client")
    text_model.execute([sent])
    assert sent.sender.failure() == message
    assert sent.sender.sent[-1][0].error().code() == TritonError.INVALID_ARG
    assert engine.calls == []
    assert log == []
    # The thread that refused it is free again.
    good = bls.request()
    text_model.execute([good])
    assert bls.texts(good) == ["fine"]


def test_what_nobody_foresaw_spares_the_other_requests(repository: Path, log: list[str]) -> None:
    hot = inputs(TEMPERATURE=np.array([["hot"]], object))
    broken, fine = opened(Preprocessing, repository).execute(
        [Request(hot, OUTPUTS), Request(inputs(), OUTPUTS)]
    )
    assert not fine.has_error()
    assert broken.error().code() == TritonError.INTERNAL
    check_told(broken.error().message(), log, "TypeError: must be real number")


def test_an_engine_that_leaves_an_output_out(repository: Path, log: list[str]) -> None:
    (response,) = opened(Postprocessing, repository).execute([Request({}, ["OUTPUT"])])
    assert response.error().code() == TritonError.INTERNAL
    check_told(response.error().message(), log, "AttributeError: 'NoneType'")


@pytest.mark.parametrize("model", ["preprocessing", "tensorrt_llm"])
def test_a_model_that_answers_with_nonsense(text_model: Any, model: str, log: list[str]) -> None:
    bls.use(bls.Engine("fine"))
    HANDLERS[model] = lambda _request: iter(["no response at all"])  # type: ignore[list-item]
    sent = bls.request()
    text_model.execute([sent])
    check_told(sent.sender.failure(), log, "AttributeError: 'str' object has no attribute")

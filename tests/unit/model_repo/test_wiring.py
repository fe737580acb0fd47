"""The ensemble and tensorrt_llm_bls join the same models, so they pass the same tensors.

Both maps are written down, because ``model_repo/`` imports nothing of ``pipeline``. Here the calls
that ``tensorrt_llm_bls`` really makes are held against the ensemble's steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from model_repo.tensorrt_llm_bls.calls import Models
from model_repo.tensorrt_llm_bls.model import _MADE_HERE
from pipeline.triton.contract import BLS, MODELS
from pipeline.triton.tensors import ENGINE, PREPROCESSING
from pipeline.triton.wiring import ANSWER_DETAILS, STEPS
from tests.unit.model_repo.fake_triton import (
    HANDLERS,
    InferenceRequest,
    InferenceResponse,
    Tensor,
)

# Engine inputs that tensorrt_llm_bls makes itself, where the ensemble passes on the client's.
DECIDED_BY_BLS = {"streaming", "exclude_input_in_output"}
# Questions that it answers itself, where the ensemble passes them to the engine.
ANSWERED_BY_BLS = {"return_num_input_tokens", "return_num_output_tokens"}
# Inputs that mean nothing without beams, which it keeps to itself (docs/sampling.md).
KEPT_BY_BLS = {"len_penalty", "num_return_sequences"}

STEP = {step.model: step for step in STEPS}
FROM_CLIENT = sorted(
    {name for step in STEPS for name in step.input_map.values() if not name.startswith("_")}
)
FROM_PREPROCESSING = sorted(STEP[PREPROCESSING].output_map)
# Every tensor has another number, by which it is known again after it was passed on.
NUMBERS = {name: number for number, name in enumerate([*FROM_CLIENT, *FROM_PREPROCESSING])}
NAMES = [*FROM_CLIENT, *FROM_PREPROCESSING]


def _tensor(name: str) -> np.ndarray:
    return np.array([[NUMBERS[name]]], np.int64)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, InferenceRequest]:
    """The requests that reach preprocessing and engine when a client sends every tensor."""
    seen: dict[str, InferenceRequest] = {}

    def preprocessing(request: InferenceRequest) -> Iterator[InferenceResponse]:
        seen[PREPROCESSING] = request
        yield InferenceResponse([Tensor(name, _tensor(name)) for name in FROM_PREPROCESSING])

    def engine(request: InferenceRequest) -> Iterator[InferenceResponse]:
        seen[ENGINE] = request
        yield InferenceResponse([Tensor("output_ids", np.zeros((1, 1, 1), np.int32))])

    monkeypatch.setitem(HANDLERS, PREPROCESSING, preprocessing)
    monkeypatch.setitem(HANDLERS, ENGINE, engine)
    inputs = {name: _tensor(name) for name in FROM_CLIENT}
    models = Models(ENGINE)
    tokens = models.preprocess(inputs)
    list(models.generate(inputs, tokens, ["output_ids"], request_id="a", streaming=True))
    return seen


def _origins(request: InferenceRequest) -> dict[str, str]:
    """Names that a model was called with, and what their values were called before."""
    return {
        name: NAMES[value.item()]
        for name, value in request.inputs.items()
        if name not in DECIDED_BY_BLS
    }


def test_preprocessing_gets_what_the_ensemble_gives_it(calls: dict[str, InferenceRequest]) -> None:
    request = calls[PREPROCESSING]
    assert _origins(request) == STEP[PREPROCESSING].input_map
    assert sorted(request.wanted) == FROM_PREPROCESSING


def test_the_engine_gets_what_the_ensemble_gives_it(calls: dict[str, InferenceRequest]) -> None:
    # The ensemble's own names lie between the models; here they are followed to their origin.
    inner = {own: name for name, own in STEP[PREPROCESSING].output_map.items()}
    by_ensemble = {name: inner.get(own, own) for name, own in STEP[ENGINE].input_map.items()}
    not_passed = DECIDED_BY_BLS | ANSWERED_BY_BLS | KEPT_BY_BLS
    assert not_passed <= by_ensemble.keys()
    passed = {name: own for name, own in by_ensemble.items() if name not in not_passed}
    assert _origins(calls[ENGINE]) == passed
    assert calls[ENGINE].inputs.keys() - passed.keys() == DECIDED_BY_BLS


def test_bls_answers_with_what_the_ensemble_answers_with() -> None:
    outputs = {tensor.name for tensor in MODELS[BLS].outputs}
    assert outputs == {"text_output", *ANSWER_DETAILS}
    # What it does not make itself it asks the engine for under the same name.
    by_engine = {name for name, own in STEP[ENGINE].output_map.items() if name == own}
    assert outputs - _MADE_HERE <= by_engine
